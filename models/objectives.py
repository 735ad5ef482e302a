"""Turn a batch into named loss terms and outputs: one objective for each part that can be trained, and for all."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.batch import (
    CLIMATE,
    ENVIRONMENT_VECTOR,
    GRAPH,
    MODALITIES,
    SPECTRUM,
    TEXT,
    Batch,
    TextBatch,
)
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT, PLANET, standardise
from models import noise
from models.aside import arrived, aside
from models.biochemistry import Chemistry
from models.cnn import ClimateCNN, ClimateOutput
from models.configs import ModelConfig
from models.consistency import Consistency, foretelling_error, info_nce, network_key
from models.fused_decoder import FusedDecoder
from models.fusion import Fusion, FusionOutput, ModalityTokens, NumberEncoder, Tokeniser
from models.graph_vae import GraphVAE
from models.language import LanguageModel, LanguageOutput, load_causal
from models.losses import Term, masked
from models.peft_decoder import PeftDecoder
from models.spectrum import SpectrumAutoencoder, SpectrumOutput

_TEXT_STREAM = 9_002  # of models.noise; networks have their own
_BESIDE_TEXT = tuple(m for m in MODALITIES if m != "text")  # what the prefix of the language model is made of


class ObjectiveOutput(NamedTuple):
    """Loss terms by name (with gradient), and what to look at or evaluate (without)."""

    terms: dict[str, Term]
    outputs: dict[str, Tensor]


class StepCounter(nn.Module):
    """Counts training forwards, so that noise differs between steps yet depends only on (sample, step)."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def seeds(self, sample_ids: tuple[str, ...]) -> Int[Tensor, " B"]:
        """Return a seed for each sample: of this step in training (which counts it), always the same in evaluation."""
        seeds = _hashed(sample_ids, self.step.device, 1_000_003)
        if self.training:
            seeds = seeds + self.step
            self.step += 1
        return seeds


class GraphVAEObjective(nn.Module):
    """Learn metabolic networks, given the environment where it is present."""

    def __init__(self, model: ModelConfig, chemistry: Chemistry) -> None:
        super().__init__()
        self.counter = StepCounter()
        self.graph_vae = GraphVAE(model.graph, chemistry)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return the graph/ terms."""
        seeds = self.counter.seeds(batch.sample_ids)
        present = batch.present
        output = self.graph_vae(
            batch.graph, batch.environment, present[:, ENVIRONMENT_VECTOR], seeds, present[:, GRAPH]
        )
        if self.training:
            self.graph_vae.exemplars.remember(output.notes)
        return ObjectiveOutput(output.terms, {"graph_latent": output.latent.detach()})

    def leaf_modules(self) -> list[nn.Module]:
        """Return the modules that ZeRO-3 should gather whole."""
        return [self.graph_vae]


class CNNObjective(nn.Module):
    """Learn climates and spectra."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.counter = StepCounter()
        self.climate = ClimateCNN(model.climate)
        self.spectrum = SpectrumAutoencoder(model.spectrum)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return climate/recon, spectrum/recon and the physics/ terms."""
        seeds = self.counter.seeds(batch.sample_ids)
        climate = self.climate(batch.climate, batch.present[:, CLIMATE])
        spectrum = self.spectrum(batch.spectrum, batch.present[:, SPECTRUM], seeds if self.training else None)
        return ObjectiveOutput(climate.terms | spectrum.terms, _cnn_outputs(climate, spectrum))

    def leaf_modules(self) -> list[nn.Module]:
        """Return the modules that ZeRO-3 should gather whole."""
        return [self.climate, self.spectrum]


class LanguageObjective(nn.Module):
    """Learn to answer from the description alone; the prefix of modality tokens is masked out."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.language = LanguageModel(model.language, load_causal(model.language), model.fusion.width)
        self.prefix_shape = (len(_BESIDE_TEXT) * model.fusion.tokens_per_modality, model.fusion.width)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return text/ce."""
        prefix = torch.zeros(len(batch.sample_ids), *self.prefix_shape, device=batch.planet.device)
        with aside(arrived(batch.present), batch.present.device) as used:
            mask = torch.zeros(prefix.shape[:2], dtype=torch.bool, device=prefix.device)
            plan = self.language.plan(batch.text, mask)
            used += [mask, plan]
        output = self.language(batch.text, prefix, mask, plan)
        return ObjectiveOutput(_text_terms(output), {"text_latent": output.latent.detach()})

    def leaf_modules(self) -> list[nn.Module]:
        """Return the modules that ZeRO-3 should gather whole; the decoder's layers are large enough by themselves."""
        return [self.language.reader]


class UnifiedObjective(nn.Module):
    """Learn all modalities together and judge habitability from those that are visible.

    Each network learns from its modality wherever it is present; fusion, head and prefix read only what is visible.
    Every network runs on every batch, since ZeRO-3 ranks must run the same modules.
    """

    def __init__(
        self, model: ModelConfig, chemistry: Chemistry, causal: FusedDecoder | PeftDecoder | None = None
    ) -> None:
        """Build all networks.

        Args:
            model: Their sizes.
            chemistry: Vocabulary of the networks.
            causal: The language model, where it should not be loaded from model.language.checkpoint.
        """
        super().__init__()
        self.text_share, self.read_share = model.language.text_share, model.language.read_share
        self.tokens_per_modality = model.fusion.tokens_per_modality
        self.counter = StepCounter()
        self.graph_vae = GraphVAE(model.graph, chemistry)
        self.climate = ClimateCNN(model.climate)
        self.spectrum = SpectrumAutoencoder(model.spectrum)
        self.planet = NumberEncoder(len(PLANET), model.fusion.contrast_dim)
        self.environment = NumberEncoder(len(ENVIRONMENT), model.fusion.contrast_dim)
        causal = load_causal(model.language) if causal is None else causal
        self.language = LanguageModel(model.language, causal, model.fusion.width)
        dims = {
            "climate": model.climate.latent_dim,
            "spectrum": model.spectrum.latent_dim,
            "graph": model.graph.latent_dim,
            "text": model.language.latent_dim,
            "planet": model.fusion.contrast_dim,
            "environment": model.fusion.contrast_dim,
        }
        self.tokeniser = Tokeniser({m: dims[m] for m in _BESIDE_TEXT}, model.fusion)
        self.text_tokeniser = Tokeniser({"text": dims["text"]}, model.fusion)
        self.fusion = Fusion(len(MODALITIES), model.fusion)
        foretold = {m: dims[m] for m in ("climate", "spectrum", "graph")} | {"environment": len(ENVIRONMENT)}
        self.consistency = Consistency(
            {m: dims[m] for m in MODALITIES}, foretold, model.fusion.width, model.fusion.contrast_dim
        )

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return every term and, among the outputs, habitability_logit, gates and latents."""
        with aside(arrived(batch.present), batch.present.device) as used:
            seeds = self.counter.seeds(batch.sample_ids)
            present, visible, text = self._shown(batch, seeds)
            beside = _beside_text(visible).repeat_interleave(self.tokens_per_modality, dim=1)
            plan = self.language.plan(text, beside)
            used += [seeds, present, visible, text, beside, plan]
        planet, environment = standardise(batch.planet, PLANET), standardise(batch.environment, ENVIRONMENT)

        climate = self.climate(batch.climate, present[:, CLIMATE])
        spectrum = self.spectrum(batch.spectrum, present[:, SPECTRUM], seeds if self.training else None)
        graph = self.graph_vae(batch.graph, batch.environment, present[:, ENVIRONMENT_VECTOR], seeds, present[:, GRAPH])
        latents = {
            "climate": climate.latent,
            "spectrum": spectrum.latent,
            "graph": graph.latent,
            "planet": self.planet(planet),
            "environment": self.environment(environment),
        }
        beside_text = self.tokeniser(*(latents[m] for m in _BESIDE_TEXT))
        language = self.language(text, beside_text.tokens.flatten(1, 2), beside, plan)
        if self.training:  # the host does not wait for it here: the device has the language model to do
            self.graph_vae.exemplars.remember(graph.notes)
        latents["text"] = language.latent
        fused, by_text = self._fuse(beside_text, language.latent, visible, only_text(present))
        agreed = self.consistency(latents, fused.latent)

        keys = content_keys(batch)
        nats, valid = info_nce(agreed.codes, agreed.sharpness, present, keys)
        targets = {m: F.layer_norm(latents[m].float(), latents[m].shape[-1:]) for m in ("climate", "spectrum", "graph")}
        errors, known = foretelling_error(
            agreed.foretold,
            targets | {"environment": environment},
            {m: present[:, MODALITIES.index(m)] for m in agreed.foretold},
        )
        bce, bce_by_text = (
            F.binary_cross_entropy_with_logits(f.habitability_logit, batch.habitable.float(), reduction="none")
            for f in (fused, by_text)
        )
        terms = {
            "habitability/bce": masked(bce, present.any(1)),
            "habitability/text_bce": masked(bce_by_text, present[:, TEXT]),
            **graph.terms,
            **climate.terms,
            **spectrum.terms,
            **_text_terms(language),
            "consistency/info_nce": masked(nats, valid),
            "consistency/cross_recon": masked(errors, known),
        }
        outputs = {
            "habitability_logit": fused.habitability_logit,
            "gates": fused.gates,
            "latent": fused.latent,
            **{f"{m}_latent": latents[m] for m in MODALITIES},
            **_cnn_outputs(climate, spectrum),
            "environment_foretold": agreed.foretold["environment"],
        }
        return ObjectiveOutput(terms, {name: value.detach() for name, value in outputs.items()})

    def _shown(
        self, batch: Batch, seeds: Int[Tensor, " B"]
    ) -> tuple[Bool[Tensor, "B Q"], Bool[Tensor, "B Q"], TextBatch]:
        """Return what is present and visible and the texts; in training only some samples have theirs."""
        if not self.training or self.text_share >= 1:
            return batch.present, batch.visible, batch.text
        read = noise.uniform(seeds, _TEXT_STREAM, torch.zeros_like(seeds[:1])[:, None]).flatten()
        whole = read < self.text_share
        told = whole | (read < self.text_share + (1 - self.text_share) * self.read_share)
        return thin_text(batch.present, batch.visible, batch.text, whole, told)

    def judge(self, latents: Mapping[str, Tensor], visible: Bool[Tensor, "B Q"]) -> FusionOutput:
        """Fuse latents that `forward` gave out; what is not visible has no influence."""
        return self._fuse(self.tokeniser(*(latents[m] for m in _BESIDE_TEXT)), latents["text"], visible)[0]

    def _fuse(
        self, beside_text: ModalityTokens, text_latent: Float[Tensor, "B D"], *views: Bool[Tensor, "B Q"]
    ) -> list[FusionOutput]:
        """Fuse what each view shows, in one run: ZeRO-3 takes a leaf module that runs twice for two."""
        of_text = self.text_tokeniser(text_latent)
        tokens, log_var = (
            torch.cat([a[:, :TEXT], b, a[:, TEXT:]], dim=1) for a, b in zip(beside_text, of_text, strict=True)
        )
        repeat = len(views)
        fused = self.fusion(tokens.repeat(repeat, 1, 1, 1), log_var.repeat(repeat, 1), torch.cat(views))
        return [FusionOutput(*part) for part in zip(*(x.chunk(repeat) for x in fused), strict=True)]

    @torch.no_grad()
    def explain(
        self, batch: Batch, end_token_id: int, max_tokens: int = 64, begin: Sequence[Sequence[int]] | None = None
    ) -> list[list[int]]:
        """Answer the question of each sample from its description and visible modalities; return token ids.

        `begin` holds the first tokens of each answer, such as those of the verdict of `forward`.
        """
        latents = {
            "climate": self.climate(batch.climate).latent,
            "spectrum": self.spectrum(batch.spectrum).latent,
            "graph": self.graph_vae(batch.graph, batch.environment, batch.visible[:, ENVIRONMENT_VECTOR]).latent,
            "planet": self.planet(standardise(batch.planet, PLANET)),
            "environment": self.environment(standardise(batch.environment, ENVIRONMENT)),
        }
        tokens = self.tokeniser(*(latents[m] for m in _BESIDE_TEXT)).tokens
        beside = torch.cat([batch.visible[:, :TEXT], batch.visible[:, TEXT + 1 :]], dim=1)
        return self.language.generate(
            batch.text, tokens.flatten(1, 2), beside.repeat_interleave(tokens.shape[2], dim=1), end_token_id,
            max_tokens, begin,
        )  # fmt: skip

    def leaf_modules(self) -> list[nn.Module]:
        """Return the modules that ZeRO-3 should gather whole; the decoder's layers are large enough by themselves."""
        return [
            self.graph_vae, self.climate, self.spectrum, self.planet, self.environment, self.language.reader,
            self.tokeniser, self.text_tokeniser, self.fusion, self.consistency,
        ]  # fmt: skip


def _beside_text(visible: Bool[Tensor, "B Q"]) -> Bool[Tensor, "B P"]:
    """Return the columns of the modalities other than the text."""
    return torch.cat([visible[:, :TEXT], visible[:, TEXT + 1 :]], dim=1)


def only_text(present: Bool[Tensor, "B Q"]) -> Bool[Tensor, "B Q"]:
    """Return the view in which nothing but the text is visible, where there is one."""
    return present & (torch.arange(len(MODALITIES), device=present.device) == TEXT)


def thin_text(
    present: Bool[Tensor, "B Q"],
    visible: Bool[Tensor, "B Q"],
    text: TextBatch,
    whole: Bool[Tensor, " B"],
    told: Bool[Tensor, " B"],
) -> tuple[Bool[Tensor, "B Q"], Bool[Tensor, "B Q"], TextBatch]:
    """Keep the answers of `whole`, the descriptions of `told`, and mark the text of the other samples absent.

    Reading all of it would cost more than all other networks together.
    """
    keep_q = torch.ones_like(present)
    keep_q[:, TEXT] = told
    thinned = TextBatch(
        token_ids=text.token_ids,
        attention_mask=torch.where(whole[:, None], text.attention_mask, text.description_mask & told[:, None]),
        description_mask=text.description_mask & told[:, None],
        label_ids=torch.where(whole[:, None], text.label_ids, -100),
    )
    return present & keep_q, visible & keep_q, thinned


def content_keys(batch: Batch) -> Int[Tensor, "B Q"]:
    """Return a number for what each modality shows: the planet, except for networks, which several planets share."""
    planet = _hashed(batch.sample_ids, batch.planet.device)
    keys = planet[:, None].repeat(1, len(MODALITIES))
    keys[:, GRAPH] = network_key(batch.graph)
    return keys


def _hashed(sample_ids: tuple[str, ...], device: torch.device, stride: int = 1) -> Int[Tensor, " B"]:
    """Return a number for each sample, a multiple of the stride; on a GPU without waiting for it."""
    numbers = torch.tensor([stride * zlib.crc32(i.encode()) for i in sample_ids])
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def _cnn_outputs(climate: ClimateOutput, spectrum: SpectrumOutput) -> dict[str, Tensor]:
    outputs = {
        "climate_latent": climate.latent,
        "climate_reconstruction": climate.reconstruction,
        "climate_target": climate.target,
        "spectrum_latent": spectrum.latent,
        "spectrum_reconstruction_ppm": spectrum.reconstruction_ppm,
    }
    return {name: value.detach() for name, value in outputs.items()}


def _text_terms(output: LanguageOutput) -> dict[str, Term]:
    return {"text/ce": Term(output.answer_nats.sum(), output.answer_tokens.sum())}


def build_objective(part: str, model: ModelConfig, chemistry: Chemistry) -> nn.Module:
    """Build the objective of a part: graph_vae, cnn, llm or unified.

    Raises:
        InputError: There is no such part, or the language model cannot be loaded.
    """
    if part == "graph_vae":
        return GraphVAEObjective(model, chemistry)
    if part == "cnn":
        return CNNObjective(model)
    if part == "llm":
        return LanguageObjective(model)
    if part == "unified":
        return UnifiedObjective(model, chemistry)
    raise InputError(f"train.part={part!r}: choose from graph_vae, cnn, llm, unified")
