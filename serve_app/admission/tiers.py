"""The service tiers, best first, as clients name them; `background` is what no client waits for."""

from typing import Literal

Tier = Literal["priority", "default", "flex", "background"]

PRIORITIES: dict[Tier, int] = {"priority": -10, "default": 0, "flex": 10, "background": 20}
"""vLLM's priority of a tier: lower is earlier."""

TIERS: tuple[Tier, ...] = tuple(PRIORITIES)

TIER_OF: dict[int, Tier] = {priority: tier for tier, priority in PRIORITIES.items()}

BACKGROUND = PRIORITIES["background"]

SHARES: dict[Tier, float] = {"priority": 1.25, "default": 1.0, "flex": 1.0, "background": 0.5}
"""How full the engine may be for one more of a tier, measured by what everybody may use.

The last fifth of its sequences is kept free for `priority`: a place in the batch cannot be taken from whoever has it.
Of the cache `priority` may use more than there is, because vLLM takes that from lower tiers.
"""
