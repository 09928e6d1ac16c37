"""`kept_alive`: a lease that is renewed in the background, for work that cannot stop to do so itself."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from serve_app.errors import RayconteurError

logger = logging.getLogger(__name__)


@contextmanager
def kept_alive(renew: Callable[[], object], lease_s: float) -> Iterator[None]:
    """Call `renew` three times in each lease, on a thread of its own, until the block ends."""
    is_done = Event()

    def beat() -> None:
        while not is_done.wait(lease_s / 3):
            try:
                renew()
            except RayconteurError as error:
                # The next beat may succeed; if the lease is lost before, the fence keeps the result out.
                logger.warning("a lease was not renewed: %s", error.message)

    thread = Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
