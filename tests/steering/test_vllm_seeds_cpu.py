"""A seeded request whose prompt is computed in parts kills vLLM on the CPU; not with the plugin."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from trimtab.steering.vllm.seeds_cpu import patch

DRAWS = 4


def _runner(thrown_away: list[bool]) -> Any:
    """What vLLM's runner does to the generators of a step, and nothing else of it."""

    class Runner:
        def __init__(self) -> None:
            generators = {i: torch.Generator().manual_seed(7 + i) for i in range(len(thrown_away))}
            self.input_batch = SimpleNamespace(num_reqs=len(thrown_away), generators=generators)
            self.discard_request_mask = SimpleNamespace(np=np.array([*thrown_away, True]))  # a buffer may be longer

        def _sample(self) -> list[list[float]]:
            return [torch.rand(DRAWS, generator=g).tolist() for g in self.input_batch.generators.values()]

        def _bookkeeping_sync(self) -> None:
            for i in np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]:
                generator = self.input_batch.generators.get(int(i))
                if generator is not None:
                    generator.set_offset(generator.get_offset() - 4)

    return Runner


def test_the_stock_way_dies() -> None:
    runner = _runner([True])()
    runner._sample()
    with pytest.raises(RuntimeError, match="offset"):
        runner._bookkeeping_sync()


def test_what_is_thrown_away_was_never_drawn() -> None:
    kind = _runner([True, False])
    patch(kind)
    runner = kind()
    before = dict(runner.input_batch.generators)
    first = runner._sample()
    runner._bookkeeping_sync()
    assert runner.input_batch.generators == before  # the very generators, not what stood for them
    second = runner._sample()
    assert second[0] == first[0]
    assert second[1] != first[1]
    fresh = torch.Generator().manual_seed(8)
    assert torch.rand(2 * DRAWS, generator=fresh).tolist() == first[1] + second[1]


@pytest.mark.server
def test_a_seed_gives_the_same_answer_however_the_prompt_was_cut(server: Any) -> None:
    prompts = [[20 + (7 * i + n) % 900 for n in range(430)] for i in range(8)]

    def body(i: int) -> dict[str, Any]:
        fixed = {"max_tokens": 8, "temperature": 1.0, "ignore_eos": True, "return_token_ids": True}
        return {"model": server.model, "prompt": prompts[i], "seed": 40 + i, "cache_salt": f"seed-{i}", **fixed}

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=240) as http:
            return list(await asyncio.gather(*(http.post("/v1/completions", json=body(i)) for i in range(8))))

    crowded = asyncio.run(together())
    assert [answer.status_code for answer in crowded] == [200] * 8
    for i, answer in enumerate(crowded):
        alone = httpx.post(f"{server.url}/v1/completions", json=body(i) | {"cache_salt": f"alone-{i}"}, timeout=240)
        assert answer.json()["choices"][0]["token_ids"] == alone.json()["choices"][0]["token_ids"]
