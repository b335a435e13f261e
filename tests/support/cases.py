"""How many cases Hypothesis makes up for what comes from outside: ``CASES=10000 pytest tests/security`` tries more."""

from __future__ import annotations

import os

import hypothesis
from hypothesis import strategies as st

CASES = int(os.environ.get("CASES", "100"))
MANY = hypothesis.settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)

WORDS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        "\0",
        "\x1b[31m",
        "../../x",
        "a" * 1000,
        "tls://1.2.3.4:8786",
        "ws://1.2.3.4:1",
        "running",
        "nan",
        "-1",
        "1e400",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([1e18, 10**400, -1, 2**63, float("nan"), float("inf"), True])
# All that JSON can say, and some that only Python can.
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
