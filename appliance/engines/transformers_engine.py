"""The embedded engine: transformers' continuous batching, with several adapters in one batch.

One background thread of transformers runs the model; everything here runs on the event loop that
serves requests. Outputs cross over with ``loop.call_soon_threadsafe``, once per step for the whole
batch, and a reader that is slow finds all that waits for it in one delta.

Blocks of the cache are not shared between requests: what a prompt's cache holds depends on the
adapter it was read with, and transformers identifies a block by its tokens alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from appliance.engines.batch_plan import BatchPlan, RequestPlan, install
from appliance.engines.detokenize import IncrementalDetokenizer, StopStrings
from appliance.engines.engine import (
    Capabilities,
    Delta,
    EngineFailure,
    FinishReason,
    GenerationRequest,
    Message,
    UnknownAdapter,
)
from appliance.engines.lora import Adapter, FlatLora, read_adapter
from appliance.engines.sampling import Draw

_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EngineSize:
    """How much one engine takes on.

    ``cache_tokens`` are kept for all requests together, in pages of ``page_tokens``; one step reads
    at most ``batch_tokens`` prompt tokens, so a long prompt never holds up its neighbours for long.
    """

    threads: int
    concurrent_requests: int = 16
    cache_tokens: int = 16_384
    batch_tokens: int = 256
    page_tokens: int = 32


@dataclass(slots=True)
class _Mailbox:
    """The newest output of one request, and a bell. Used on the event loop only.

    Each output holds all tokens generated so far, so only the newest matters.
    """

    output: Any = None
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, output: Any) -> None:
        self.output = output
        self.bell.set()

    async def newest(self) -> Any:
        await self.bell.wait()
        self.bell.clear()
        return self.output


class TransformersEngine:
    """An :class:`~appliance.engines.engine.Engine` on this machine's processor."""

    def __init__(self, model: Any, tokenizer: Any, size: EngineSize) -> None:
        torch.set_num_threads(size.threads)
        self._model = model
        self._tokenizer = tokenizer
        self._size = size
        self._stop_tokens = _stop_tokens(model)
        self._adapters: dict[str, Adapter] = {}
        self._lora = FlatLora(model)
        self._plan = BatchPlan(self._lora)
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False,  # the plan draws, request by request
                eos_token_id=sorted(self._stop_tokens) or -1,
                pad_token_id=0,
            ),
            continuous_batching_config=_batching(size),
        )
        install(self._plan, self._manager)
        self._manager.start()

    @classmethod
    def open(cls, folder: Path, size: EngineSize) -> TransformersEngine:
        """Load the model of ``folder`` (``config.json``, safetensors, tokenizer) and start."""
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return cls(model, tokenizer, size)

    @property
    def capabilities(self) -> Capabilities:
        """The model's own context, or less where the cache is smaller."""
        longest: int = self._model.config.max_position_embeddings
        return Capabilities(
            context_tokens=min(longest, self._size.cache_tokens),
            concurrent_requests=self._size.concurrent_requests,
            adapters=True,
        )

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the loaded adapters, sorted."""
        return sorted(self._adapters)

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation by the model's own template, ready for its answer."""
        text = self._tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""
        return tuple(self._tokenizer.encode(text))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Generate until a stop token, a stop string or ``max_tokens``; see the protocol."""
        self.check()
        adapter = self._adapter(request.adapter)
        mailbox = _Mailbox()
        self._plan.add(request.id, RequestPlan(Draw.of(request.sampling), adapter))
        self._manager.register_result_handler(request.id, mailbox.put)
        self._manager.add_request(
            list(request.prompt_token_ids),
            request_id=request.id,
            max_new_tokens=request.sampling.max_tokens,
            streaming=True,
        )
        finished = False
        reader = _Reader(
            IncrementalDetokenizer(self._decode),
            StopStrings(request.sampling.stop),
            self._stop_tokens,
        )
        try:
            while not finished:
                delta = reader.read(await mailbox.newest())
                finished = delta.finish_reason is not None
                yield delta
        finally:
            self._forget(request.id)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Read an adapter in a thread of its own, then let new requests use it."""
        adapter = await asyncio.to_thread(read_adapter, name, path, self._model)
        self._lora.prepare(adapter)
        self._adapters[name] = adapter

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter; those under way finish with it."""
        if self._adapters.pop(name, None) is None:
            raise UnknownAdapter(name)

    def check(self) -> None:
        """Raise ``EngineFailure`` when the thread that runs the model is gone."""
        if not self._manager.is_running():
            raise EngineFailure("the engine's generation thread has stopped")

    async def close(self) -> None:
        """Stop at once; what is under way fails."""
        await asyncio.to_thread(
            self._manager.stop, block=True, timeout=_STOP_SECONDS, hard_stop=True
        )

    @property
    def free_cache_tokens(self) -> int:
        """How many tokens of the cache no request holds."""
        processor = self._manager.batch_processor
        if processor is None:
            return self._size.cache_tokens
        free: float = processor.cache.compute_free_capacity()
        return round(free * self._size.cache_tokens)

    def _adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        try:
            return self._adapters[name]
        except KeyError:
            raise UnknownAdapter(name) from None

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _forget(self, request_id: str) -> None:
        """Free what a request holds; for one that is finished, transformers ignores it."""
        router = self._manager.output_router
        with router._lock:
            unfinished = router.result_handlers.pop(request_id, None) is not None
        if unfinished:
            self._manager.cancel_request(request_id)
        self._plan.drop(request_id)


@dataclass(slots=True)
class _Reader:
    """Turns the outputs of one request into deltas."""

    detokenizer: IncrementalDetokenizer
    stops: StopStrings
    stop_tokens: frozenset[int]
    seen: int = 0

    def read(self, output: Any) -> Delta:
        """What is new in an output. Raises ``EngineFailure`` for a failed one."""
        if output.error is not None:
            raise EngineFailure(output.error)
        new = output.generated_tokens[self.seen :]
        self.seen += len(new)
        text = self.stops.push(self.detokenizer.push(new))
        if self.stops.stopped:
            return Delta(text, len(new), "stop")
        if not output.is_finished():
            return Delta(text, len(new))
        text += self.stops.push(self.detokenizer.flush())
        ended = self.stops.stopped or (bool(new) and new[-1] in self.stop_tokens)
        reason: FinishReason = "stop" if ended else "length"
        return Delta(text + self.stops.flush(), len(new), reason)


def _stop_tokens(model: Any) -> frozenset[int]:
    """The tokens that end an answer, from the model's generation settings."""
    stop = model.generation_config.eos_token_id
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def _batching(size: EngineSize) -> Any:
    """The engine's size in transformers' words.

    Graphs and double buffering run a step before the one before it is known, which the batch plan
    does not allow for; on a processor they gain nothing.
    """
    return ContinuousBatchingConfig(
        page_size=size.page_tokens,
        num_blocks=size.cache_tokens // size.page_tokens,
        max_batch_tokens=size.batch_tokens,
        max_requests_per_batch=size.concurrent_requests,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
    )
