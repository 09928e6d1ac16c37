"""Background jobs: claimed by one at a time, and only who holds one writes to its journal or ends it."""

import threading

import pytest
from sqlalchemy import func, select, update

from serve_app.conversation.jobs import Batch, ResponseJob, ResponseJobs
from serve_app.conversation.log import ConversationLog
from serve_app.errors import Conflict, NotFound
from serve_app.storage.database import Database
from serve_app.storage.schema import response_jobs, response_journal
from serve_app.types import new_id
from serve_app.types.conversation import CloseTurn, OpenTurn
from tests.conversation.messages import all_items, answer, question

REQUEST = {"any": ["thing", 1, None]}


@pytest.fixture
def jobs(database: Database) -> ResponseJobs:
    return ResponseJobs(database)


def queue(log: ConversationLog, **fields: str) -> OpenTurn:
    turn = question("q", job=REQUEST, **fields)
    log.open_turn(turn)
    return turn


def claim(jobs: ResponseJobs) -> ResponseJob:
    job = jobs.claim()
    assert job is not None
    return job


def let_lease_run_out(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(response_jobs).values(lease_until=1.0))


def count_journal(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(select(func.count()).select_from(response_journal)) or 0


def batch(number: int) -> Batch:
    return Batch(number, ({"type": "text_delta", "text": f"text {number}"},), f"raw {number}")


def test_jobs_are_claimed_once_and_the_oldest_first(log: ConversationLog, jobs: ResponseJobs) -> None:
    turns = [queue(log), queue(log)]

    claimed = [claim(jobs), claim(jobs)]

    assert [job.response_id for job in claimed] == [turn.response["id"] for turn in turns]
    assert [(job.fence, job.request, job.log_id) for job in claimed] == [
        (1, REQUEST, turn.response["id"]) for turn in turns
    ]
    assert jobs.claim() is None


def test_of_many_that_claim_at_once_each_job_has_one(log: ConversationLog, database: Database) -> None:
    workers, count = 4, 12
    for _ in range(count):
        queue(log)
    start = threading.Barrier(workers)
    claimed: list[str] = []

    def work() -> None:
        jobs = ResponseJobs(database)
        start.wait()
        # With others at the same moment it may get none although some are left.
        for _ in range(count):
            if job := jobs.claim():
                claimed.append(job.response_id)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == count


def test_job_of_who_is_silent_is_claimed_again_and_the_first_can_write_no_more(
    log: ConversationLog, jobs: ResponseJobs, database: Database
) -> None:
    turn = queue(log)
    first = claim(jobs)
    assert jobs.write(first, batch(1))
    let_lease_run_out(database)

    second = claim(jobs)

    assert second.fence == first.fence + 1
    assert not jobs.write(first, batch(2))
    assert not jobs.write(first, None)
    assert jobs.write(second, batch(2))
    assert jobs.read(turn.response["id"], 0) == (batch(1), batch(2))
    assert jobs.read(turn.response["id"], 1) == (batch(2),)


def test_write_renews_the_lease(log: ConversationLog, jobs: ResponseJobs, database: Database) -> None:
    queue(log)
    job = claim(jobs)
    let_lease_run_out(database)

    assert jobs.write(job, None)

    assert jobs.claim() is None


def test_same_batch_again_is_there_once(log: ConversationLog, jobs: ResponseJobs) -> None:
    turn = queue(log)
    job = claim(jobs)

    assert jobs.write(job, batch(1))
    assert jobs.write(job, batch(1))

    assert jobs.read(turn.response["id"], 0) == (batch(1),)


def test_released_job_can_be_claimed_after_the_time_it_was_given(log: ConversationLog, jobs: ResponseJobs) -> None:
    queue(log)

    jobs.release(claim(jobs), 60, has_failed=False)
    assert jobs.claim() is None
    held = jobs.take_over(queue(log).response["id"])
    assert held is not None
    jobs.release(held, -1, has_failed=False)
    assert claim(jobs).response_id == held.response_id


def test_claims_that_came_to_nothing_are_counted(log: ConversationLog, jobs: ResponseJobs, database: Database) -> None:
    queue(log)

    killed = claim(jobs)
    let_lease_run_out(database)
    failed = claim(jobs)
    jobs.release(failed, -1, has_failed=True)
    refused = claim(jobs)
    jobs.release(refused, -1, has_failed=False)
    going_on = claim(jobs)
    jobs.write(going_on, None)
    jobs.write(going_on, batch(1))
    let_lease_run_out(database)

    attempts = [job.attempts for job in (killed, failed, refused, going_on, claim(jobs))]
    assert attempts == [1, 2, 3, 1, 1]


def test_only_who_holds_the_job_closes_it(log: ConversationLog, jobs: ResponseJobs, database: Database) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    turn = queue(log, conversation_id=conversation.id)
    first = claim(jobs)
    jobs.write(first, batch(1))
    second = jobs.take_over(turn.response["id"])
    assert second is not None
    final = answer(turn, "a", conversation.id).response

    with pytest.raises(Conflict, match="another process"):
        log.close_turn(CloseTurn(conversation.id, final, job_fence=first.fence))
    assert len(all_items(log, conversation.id)) == 1
    log.close_turn(CloseTurn(conversation.id, final, job_fence=second.fence))
    log.close_turn(CloseTurn(conversation.id, final, job_fence=second.fence))

    assert log.get_response(turn.response["id"]) == final
    assert len(all_items(log, conversation.id)) == 2
    assert jobs.read(turn.response["id"], 0) is None
    assert jobs.take_over(turn.response["id"]) is None
    assert count_journal(database) == 0


def test_deleted_response_takes_its_job_along(log: ConversationLog, jobs: ResponseJobs, database: Database) -> None:
    turn = queue(log)
    job = claim(jobs)
    jobs.write(job, batch(1))

    log.delete_response(turn.response["id"])

    assert not jobs.write(job, batch(2))
    assert count_journal(database) == 0
    with pytest.raises(NotFound):
        log.get_response(turn.response["id"])


def test_response_says_how_far_its_job_is(log: ConversationLog, jobs: ResponseJobs) -> None:
    turn = queue(log)
    response_id = turn.response["id"]

    assert log.get_response(response_id)["status"] == "queued"
    claim(jobs)
    recorded = log.get_recorded(response_id)

    assert (recorded.response["status"], recorded.has_job, recorded.has_ended) == ("in_progress", True, False)


def test_response_with_a_job_is_never_interrupted(log: ConversationLog, database: Database) -> None:
    turn = queue(log)

    late = ConversationLog(database, max_cached=1, stale_after_s=0)

    assert late.get_response(turn.response["id"])["status"] == "queued"


def test_its_worker_opens_the_turn_again_and_sees_the_history(log: ConversationLog) -> None:
    conversation = log.create_conversation(new_id("conv"), {}, ())
    turn = queue(log, conversation_id=conversation.id)

    opened = log.open_turn(OpenTurn(turn.response, turn.input_items, conversation_id=conversation.id))

    assert (opened.finished, opened.history, opened.log_id) == (None, (), conversation.id)
    assert len(all_items(log, conversation.id)) == 1


def test_same_key_gets_the_response_as_it_stands(log: ConversationLog, jobs: ResponseJobs) -> None:
    first = queue(log, idempotency_key="k")

    again = log.open_turn(question("q", job=REQUEST, idempotency_key="k"))

    assert again.finished == {**first.response, "status": "queued"}
    # Somebody who would wait for the answer on the same connection cannot have it.
    with pytest.raises(Conflict):
        log.open_turn(question("q", idempotency_key="k"))
