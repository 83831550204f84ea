"""The folder of a run with all that its page shows, and rows that would do harm to a page."""

import json
from pathlib import Path
from typing import Any

from support import finished_run

ATTACK = (
    "<script>document.title='run'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} </mark> &amp; 😂"
)
LOSSES = [(0, None, 3.0), (1, 3.1, None), (2, 2.6, 2.25), (3, 2.0, None), (4, 1.8, 2.5)]
METRICS = [
    {"step": s, "loss": t, "epoch": s / 4, "tokens": 100 * s, "seconds": 2.0 * s}
    for s, t, _ in LOSSES
    if t
] + [{"step": s, "eval_loss": v} for s, _, v in LOSSES if v]
SAMPLES = [
    {"source": "idk lol", "reference": "jsp mdr", "base": "bon, " * 9, "tuned": "jsp trop mdr"},
    {"source": ATTACK, "reference": ATTACK, "base": "", "tuned": ATTACK},
    *({"source": f"row {i}", "reference": "a b", "base": "a", "tuned": "a b"} for i in range(14)),
]
RUN: dict[str, Any] = finished_run.RUN | {
    "finished": "2030-01-02T03:14:05+00:00",
    "task": "translation",
    "training": {"steps": 4, "seconds": 240.0, "wall_seconds": 300.0, "kept_step": 2}
    | {"tokens_per_second": 512.0, "supervised_tokens_per_second": 128.0}
    | {"peak_memory_bytes": 3 * 2**30},
    "plan": {"device": "cpu", "moment": "in the loss", "peak": 2**31, "parts": {"base": 2**31}},
    "lengths": {"train": {"1-8": 10, "9-16": 5, ">16": 0}},
    "checks": [
        {"status": "WARN", "name": "data", "text": "2 duplicates <b>"},
        {"status": "ok", "name": "disk", "text": "room in /home/morgane/runs"},
    ],
}
RUN["evaluation"] = {
    "test": RUN["evaluation"]["test"]
    | {"samples": SAMPLES, "seconds": 120.0, "ask": "Hello"}
    | {"base": RUN["evaluation"]["test"]["base"] | {"chrf": {"score": 12, "low": 11, "high": 13}}}
    | {
        "losses": [
            {"prompt": "p:", "tokens": ["a", "\n", "<b>"]}
            | {"base": [5.0, 0.1, 9.0], "tuned": [0.1, 0.1, 1.0]}
        ]
    }
}


def made(place: Path, **changes: Any) -> Path:
    """A run's folder with metrics, and with values of its record changed."""
    record = {k: v for k, v in (RUN | changes).items() if v is not None}
    finished_run.write(place, record)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    return place
