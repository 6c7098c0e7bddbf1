"""The engine inside this process: transformers in float32, PEFT for adapters, forward hooks for interventions.

It is the reference that the vLLM server is held to, and the engine of machines that vLLM does not support. One request
runs at a time, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadInput, EngineRefused, EngineUnavailable, TrimtabError
from ...home import home
from ...steering.document import FILE, read_document
from ...steering.profile import Profile, load_profile
from ...steering.store import ProfileStore
from ..card import ModelCard
from ..chat import ChatRequest, Delta, Message, Receipt, Reply, Sampling, ToolCall, Usage
from . import hermes

ADAPTERS_KEPT = 32
"""Adapters held in memory; the one unused for longest goes first."""

LEAST_HEAT = 0.01
"""What vLLM makes of a temperature below it that is not 0: divided by less, logits may overflow."""

Emit = Callable[[str], None]

_loading = threading.Lock()
"""Held while a model loads: threads that import transformers' classes at the same moment find half a module, and
whether it shows progress bars is one setting for all."""


@dataclass(frozen=True)
class _Drawn:
    """Generated token ids (the end token included), their log probabilities, and whether the end token came."""

    ids: list[int]
    logprobs: list[float]
    ended: bool


class LocalEngine:
    """Chat with a model in this process. Loading happens here, in the constructor: seconds.

    Args:
        card: the model.
        store: where profiles come from.

    Raises:
        BadInput: the weights do not load, or there is no chat template.
    """

    name = "transformers"

    def __init__(self, card: ModelCard, store: ProfileStore) -> None:
        self.card = card
        self._store = store
        self._known: dict[tuple[Path, int], bool] = {}
        with _loading:
            self._tokenizer, self._model = _loaded(card.path)
        if not self._tokenizer.chat_template:
            raise BadInput("there is no chat template", where=str(card.path), fix="Add a chat_template.jinja")
        self._ends = _end_tokens(self._tokenizer, self._model)
        self._peft: Any = None
        self._adapters: dict[str, None] = {}  # in order of last use
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trimtab-local")
        self._closed = False

    @property
    def model(self) -> str:
        return self.card.name

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer one request; see `Engine.chat`."""
        cancel = threading.Event()
        try:
            return await self._submit(request, cancel, None)
        finally:
            cancel.set()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Answer one request in pieces; see `Engine.stream`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        cancel = threading.Event()

        def put(piece: str | None) -> None:
            if not cancel.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        future = self._submit(request, cancel, put)
        future.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield Delta(piece)
            yield Delta(reply=await future)
        finally:
            cancel.set()
            future.cancel()

    async def profiles(self) -> list[str]:
        """The names in the store that stand for a profile of this model."""
        return await asyncio.to_thread(lambda: [name for name in self._store.names() if self._fits(name)])

    async def aclose(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False)  # those that wait are not cancelled, but told

    def _submit(self, request: ChatRequest, cancel: threading.Event, emit: Emit | None) -> asyncio.Future[Reply]:
        if self._closed:
            raise EngineUnavailable("the engine is closed", where=self.name)
        return asyncio.get_running_loop().run_in_executor(self._pool, self._answer, request, cancel, emit)

    def _fits(self, name: str) -> bool:
        """Whether a name stands for a profile that was made for this model; its document alone is read, once."""
        try:
            folder = self._store.find(name)
            key = folder, (folder / FILE).stat().st_mtime_ns
            if key not in self._known:
                self._known[key] = read_document(folder).base.sha256 == self.card.sha256
            return self._known[key]
        except (TrimtabError, OSError):
            return False

    # What follows runs in the worker thread.

    def _answer(self, request: ChatRequest, cancel: threading.Event, emit: Emit | None) -> Reply:
        start = time.perf_counter()
        if self._closed:
            raise EngineUnavailable("the engine was closed while the request waited", where=self.name)
        if request.constrained and request.tools:
            raise EngineRefused(
                "the transformers engine cannot constrain calls", where="constrained",
                fix="Ask without it, or use the vllm engine",
            )  # fmt: skip
        profile = self._profile(request.profile)
        sampling = request.sampling or _defaults(profile)
        _check(sampling)
        prompt = self.prompt_ids(request)
        room = (self.card.context or len(prompt) + sampling.longest) - len(prompt)
        if room <= 0:
            raise EngineRefused(
                f"the prompt has {len(prompt)} tokens, the model's context is {self.card.context}",
                where=self.card.name,
                fix="Shorten the conversation, or give fewer tools",
            )
        text = _Text(self._tokenizer, prompt, parsed=bool(request.tools), emit=emit)
        with ExitStack() as stack:
            adapter = self._enter_adapter(stack, profile)
            run = None
            if profile is not None and profile.interventions:
                from ...steering.hooks import steered

                run = stack.enter_context(steered(self._model, profile, len(prompt), tokenizer=self._tokenizer))
            drawn = self._draw(prompt, sampling, min(room, sampling.longest), cancel, text)
        text.finish()
        content, calls = hermes.parse(text.text) if request.tools else (text.text or None, [])
        message = Message(
            "assistant", content, tuple(ToolCall(f"call_{uuid.uuid4().hex[:24]}", *call) for call in calls)
        )
        return Reply(
            message=message,
            finish_reason="tool_calls" if calls else "stop" if drawn.ended else "length",
            usage=Usage(len(prompt), len(drawn.ids), 0),
            seconds=time.perf_counter() - start,
            receipt=self._receipt(profile, adapter, 0 if run is None else run.edited),
            logprobs=tuple(drawn.logprobs) if sampling.logprobs else None,
        )

    def prompt_ids(self, request: ChatRequest) -> list[int]:
        """The prompt's tokens: the chat template over messages and tools, as vLLM renders it.

        Raises:
            EngineRefused: the template refuses the conversation, or there is something in it that is no text.
        """
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                hermes.template_messages(request.messages),
                tools=hermes.template_tools(request.tools),
                add_generation_prompt=True,
                tokenize=False,
            )
        except (jinja2.TemplateError, KeyError, TypeError, ValueError) as error:
            raise EngineRefused(f"the chat template refuses the request ({error})", where=self.card.name) from None
        try:
            text.encode()
        except UnicodeEncodeError:
            raise EngineRefused("half a surrogate pair is not text", where="messages", fix="Leave it out") from None
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _draw(self, prompt: list[int], sampling: Sampling, count: int, cancel: threading.Event, text: _Text) -> _Drawn:
        import torch
        from transformers import DynamicCache

        generator = torch.Generator()
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        else:
            generator.seed()
        cache = DynamicCache(config=self._model.config)
        ids: list[int] = []
        logprobs: list[float] = []
        feed, position = torch.tensor([prompt]), 0
        with torch.inference_mode():
            while len(ids) < count:
                if cancel.is_set():
                    raise EngineUnavailable("the request was cancelled", where=self.name)
                logits = self._model(
                    input_ids=feed,
                    position_ids=torch.arange(position, position + feed.shape[1])[None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[0, -1]
                position += feed.shape[1]
                token = _pick(logits, sampling, generator)
                ids.append(token)
                if sampling.logprobs:
                    logprobs.append(float(torch.log_softmax(logits, -1)[token]))
                if token in self._ends:
                    return _Drawn(ids, logprobs, True)
                text.add(token)
                feed = torch.tensor([[token]])
        return _Drawn(ids, logprobs, False)

    def _profile(self, spec: str | None) -> Profile | None:
        if spec is None:
            return None
        return load_profile(
            self._store.get(spec).directory,
            hidden_size=self.card.hidden_size,
            num_layers=self.card.num_layers,
            base_sha256=self.card.sha256,
        )

    def _enter_adapter(self, stack: ExitStack, profile: Profile | None) -> str | None:
        """Make the profile's adapter, or none, the one in effect; the SHA-256 of its weights. Raises BadInput for one
        that does not fit the model, whose other adapters stay."""
        from ...steering.wearing import wear
        from ...steering.weights import merged_adapter

        merged = merged_adapter(profile, home() / "cache" / "adapters") if profile else None
        if merged is None or profile is None:
            if self._peft is not None:
                stack.enter_context(self._peft.disable_adapter())
            return None
        folder, sha256 = merged
        if sha256 not in self._adapters:
            bare = self._model if self._peft is None else self._peft
            self._peft = wear(bare, folder, name=sha256, where=f"profile {profile.id}: adapter")
        self._adapters.pop(sha256, None)
        self._adapters[sha256] = None
        self._peft.set_adapter(sha256)
        while len(self._adapters) > ADAPTERS_KEPT:
            oldest = next(iter(self._adapters))
            del self._adapters[oldest]
            self._peft.delete_adapter(oldest)
        return sha256

    def _receipt(self, profile: Profile | None, adapter: str | None, steered: int) -> Receipt:
        if profile is None:
            return Receipt(self.name, self.card.name, tokens_steered=0)
        return Receipt(self.name, self.card.name, profile.id, profile.sha256, adapter, profile.layers, steered)


class _Text:
    """The answer's text as its tokens come, decoded the way vLLM does it: bytes of an unfinished character stay away.

    Args:
        prompt: tokens before the answer; some decoders need them to get the first space right.
        parsed: whether calls are read from the text. Their marks are special tokens in some models: then all are kept.
        emit: given each piece of text once it is sure to be content; None where nobody listens.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], *, parsed: bool, emit: Emit | None) -> None:
        self.text = ""
        self._tokenizer, self._parsed, self._emit, self._said = tokenizer, parsed, emit, 0
        self._fast = getattr(tokenizer, "_tokenizer", None)
        self._ids: list[int] = []
        self._stream = self._fresh(prompt)

    def _fresh(self, prompt: list[int]) -> Any:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(ids=prompt, skip_special_tokens=not self._parsed) if self._fast is not None else None

    def add(self, token: int) -> None:
        """One more token."""
        if self._stream is None:
            self._ids.append(token)
            self.text = str(self._tokenizer.decode(self._ids, skip_special_tokens=not self._parsed)).rstrip("\ufffd")
        else:
            try:
                piece = self._stream.step(self._fast, token)
            except Exception as error:  # the tokenizers library has no narrower one
                if "Invalid prefix" not in str(error):
                    raise
                self._stream = self._fresh([])
                piece = self._stream.step(self._fast, token)
            self.text += piece or ""
        self._say(hermes.speakable(self.text) if self._parsed else len(self.text))

    def finish(self) -> None:
        """The answer is whole: what was held back and is no call is content."""
        content, _ = hermes.parse(self.text) if self._parsed else (self.text, [])
        self._say(len(content or ""))

    def _say(self, upto: int) -> None:
        if self._emit and upto > self._said:
            self._emit(self.text[self._said : upto])
            self._said = upto


def _defaults(profile: Profile | None) -> Sampling:
    """A profile's decoding defaults; greedy where it has none."""
    if profile is None:
        return Sampling()
    given = {k: v for k, v in profile.decoding.model_dump().items() if v is not None}
    return Sampling(**given)


def _check(sampling: Sampling) -> None:
    """Raises EngineRefused, naming the field, for what vLLM refuses, too."""
    seed = 0 if sampling.seed is None else sampling.seed
    for field, good, fix in (
        ("temperature", 0 <= sampling.temperature < math.inf, "Give a number from 0 on"),
        ("top_p", 0 < sampling.top_p <= 1, "Give a share above 0, at most 1"),
        ("max_tokens", sampling.longest >= 1, "Give at least 1"),
        ("seed", -(2**63) <= seed < 2**63, "Give a whole number of at most 64 bits"),
    ):
        if not good:
            raise EngineRefused(f"{getattr(sampling, field)!r:.40} cannot be used", where=field, fix=fix)


def _pick(logits: Any, sampling: Sampling, generator: Any) -> int:
    """The next token from logits [vocabulary]: the largest at temperature 0, else drawn from the top_p nucleus."""
    import torch

    if sampling.temperature == 0:
        return int(logits.argmax())
    heat = max(sampling.temperature, LEAST_HEAT)
    values, order = torch.sort(torch.softmax(logits / heat, -1), descending=True)
    values[values.cumsum(-1) - values >= sampling.top_p] = 0
    return int(order[torch.multinomial(values, 1, generator=generator)])


def _end_tokens(tokenizer: Any, model: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's and those of the generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(int(i) for i in [*ends, tokenizer.eos_token_id] if i is not None)


def _loaded(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model. Raises BadInput."""
    import torch
    import transformers
    from safetensors import SafetensorError

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        return tokenizer, model.eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip() or type(error).__name__
        raise BadInput(f"the model does not load: {reason.splitlines()[0]}", where=str(folder)) from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
