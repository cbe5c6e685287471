"""What a processor is good at."""

from __future__ import annotations

import pytest
import torch

from rankloom.training import processor


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert processor.resolve_precision(asked) == asked  # type: ignore[arg-type]


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processor, "_cpu_multiplies_bf16", lambda: native)
    assert processor.resolve_precision("auto") == expected


def test_freed_memory_may_be_kept_and_returned_on_any_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.platform, "libc_ver", lambda: ("", ""))
    processor.return_freed_memory()
    processor.keep_freed_memory.cache_clear()
    assert processor.keep_freed_memory() is False
    processor.keep_freed_memory.cache_clear()
