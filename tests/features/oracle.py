"""What features and labels are, in plain Python: slow, obvious, sharing nothing with the kernels."""

from __future__ import annotations

from pipeline.features.samples import Head, SampleRequest
from pipeline.features.spec import FeatureSpec
from tests.features.logs import DAY, Event


def feature(spec: FeatureSpec, events: list[Event], key: int, at: int) -> dict[str, float]:
    """The counts, recencies, rates, streak, tenure and history of one decision point."""
    seen = [e for e in events if e.key == key and e.ts < at and not e.machine]
    out: dict[str, float] = {}
    counts = {(k, w): sum(e.event == k and e.ts >= at - w for e in seen) for k in spec.kinds for w in spec.windows}
    for f in spec.features:
        if f.op == "count":
            out[f.name] = counts[f.kind, f.window]
        elif f.op == "rate":
            trials = counts[spec.exposure, f.window] - sum(counts[b, f.window] for b in spec.bounces)
            out[f.name] = (counts[f.kind, f.window] + 1) / (max(trials, 0) + 10)
        elif f.op == "recency":
            out[f.name] = min([at - e.ts for e in seen if e.event == f.kind] + [spec.cap]) / DAY
        elif f.op == "streak":
            answered = max([e.ts for e in seen if e.event in spec.responses], default=-(2**63))
            out[f.name] = sum(e.event == spec.exposure and e.ts > answered for e in seen)
        elif f.op == "tenure":
            out[f.name] = max([at - e.ts for e in events if e.key == key and e.ts < at], default=0) / DAY
        elif f.op == "history":
            out[f.name] = len(seen)
    return out


def label(head: Head, request: SampleRequest, events: list[Event], send: Event) -> tuple[float, float]:
    """One outcome of one exposure, and whether it is known; ``events`` in total order."""
    mine = [e for e in events if e.key == send.key and e.ts < request.as_of]
    total = 0
    for e in mine:
        if e.event not in head.kinds or e is send or e.machine or not send.ts <= e.ts < send.ts + head.within:
            continue
        if head.match:
            sends = [s for s in mine if s.event == request.exposure and s.campaign == e.campaign and s is not e]
            earlier = [s for s in sends if s.ts <= e.ts and s.campaign is not None]
            if not earlier or earlier[-1] is not send:
                continue
        total += e.value if head.sum else 1
    known = send.ts + head.within + request.lateness <= request.as_of
    return (total / 1e6 if head.sum else float(total > 0)) * known, float(known)


def active(request: SampleRequest, events: list[Event], key: int, at: int) -> tuple[bool, bool]:
    """Whether a subscriber is recent enough at an instant, and whether suppressed."""
    seen = [e for e in events if e.key == key and e.ts < at and e.ts < request.as_of]
    left = [e.ts for e in seen if e.event in ("unsubscribe", "complaint", "hard_bounce")]
    back = [e.ts for e in seen if e.event == "subscribe"]
    suppressed = bool(left) and not (back and max(back) > max(left))
    return any(e.ts >= at - request.active_within for e in seen), suppressed
