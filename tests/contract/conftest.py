"""Promises say what they saw when they are broken, as tests do."""

import pytest

pytest.register_assert_rewrite("contract")
