"""The flags of a row: when each is raised, what it means, and the paper behind it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from harness.analysis.statistics import unlike
from harness.api.records import Coverage, FamilyName, Protocol
from harness.curvature.activation_names import GATES, STEERED

MEANING = {
    "replay": (
        "Adversarial images found at other β fool this network too, though its own attack missed them: the attack is "
        "weaker here than its number says, as with masked gradients (Athalye et al. 2018, arXiv 1802.00420)."
    ),
    "square": (
        "Square, which needs no gradient, fooled the network on images that survived the gradient attacks: a sign of "
        "masked gradients (Croce & Hein 2020, arXiv 2003.01690)."
    ),
    "sentinel": (
        "A short Square, which needs no gradient and is no part of this attack, fooled the network on images that "
        "survived it: a sign of masked gradients, or of too short an attack (Croce & Hein 2020, arXiv 2003.01690)."
    ),
    "unit_test": (
        "The attack misses adversarial examples that were planted within its reach by a readout of the network's own "
        "features: it is too weak for this network (Zimmermann et al., NeurIPS 2022)."
    ),
    "gradient_mismatch": (
        "A small step along the gradient does not change the loss as the gradient predicts: the network's backward "
        "pass is not that of its forward pass, or its output is rough (Athalye et al. 2018, arXiv 1802.00420)."
    ),
    "zero_gradient": (
        "The losses of the attack have an exactly zero gradient at some images, so it cannot move: saturated logits or "
        "quantisation (Carlini & Wagner 2017; Athalye et al. 2018, arXiv 1802.00420)."
    ),
    "large_eps": (
        "With the whole pixel box to move in, the attack still leaves an accuracy above chance: the attack fails, "
        "rather than the network being robust (Carlini et al. 2019, arXiv 1902.06705; Pintor et al. 2022, arXiv "
        "2106.09947)."
    ),
    "randomized": (
        "The same image gets other logits each time; standard AutoAttack is not made for that, use attack: rand (Croce "
        "& Hein 2020, arXiv 2003.01690)."
    ),
    "nondeterministic": (
        "An operation of the network or the attack has no deterministic kernel on this device, so the same run may "
        "give other bits, and an image near the boundary another verdict (torch.use_deterministic_algorithms lists "
        "the operations)."
    ),
    "dynamic": (
        "The network computes gradients or changes while it answers, which standard AutoAttack may not overcome (Croce "
        "et al. 2022, arXiv 2202.13711)."
    ),
    "probabilities": (
        "The network yields probabilities, whose gradients vanish; nothing is scored until its softmax or sigmoid is "
        "removed (Carlini et al. 2019, arXiv 1902.06705)."
    ),
    "few_classes": (
        "Fewer classes than the targeted attacks expect: they ran with fewer targets, or not at all (Croce & Hein "
        "2020, arXiv 2003.01690)."
    ),
    "partial": (
        "Not every activation is steered: some are of another kind, are spelt otherwise (torch.maximum(x, 0), say), or "
        "are not registered modules; CT as published "
        "reaches ReLU-like activations only (Hu et al. 2025, arXiv 2502.07783)."
    ),
    "lora_partial": (
        "LoRA leaves out layers of the backbone: merged into them, it would be another network than was trained "
        "(padding with other than zeros, dilation, a weight that is shared or computed in a hook), or the library "
        "cannot merge them (grouped convolutions). The log names them."
    ),
    "unlike_published": (
        "The untouched network's clean accuracy is further from the published one than chance explains: other weights, "
        "another preprocessing or other images than it was published for (Croce et al. 2021, arXiv 2010.09670)."
    ),
    "seen": (
        "A few of the scored images, at most 1 %, are among the training images too, pixel by pixel; official splits "
        "have such duplicates (Barz & Denzler 2020, arXiv 1902.00423)."
    ),
    "repeated": (
        "More than 1 % of the scored images have the pixels of another one: they may not be read as they are stored, "
        "and are fewer images than the interval and p count (Barz & Denzler 2020, arXiv 1902.00423)."
    ),
    "batch_dependent": (
        "An image's answer depends on its batch: on the other images, their number, or its place (batch statistics, "
        "say). So the accuracy is that of a batch rather than of the network. Images were scored one at a time where "
        "that settles the answer."
    ),
    "refitted": (
        "Not all images were scored with the same fit, as the several hashes in weights_sha256 show: it was fitted "
        "anew in between, on another machine or after the cache was lost. Move the ledger away and run it again."
    ),
    "not_comparable": (
        "Made as the Curvature Tuning paper's numbers were: only registered modules are replaced, β is chosen in "
        "sample, and where there is an eps, images are normalised before they are attacked, so that it is not in "
        "pixels. Compare it with no other board (protocol: paper; Hu et al. 2025, arXiv 2502.07783)."
    ),
    "invalid": (
        "The attack returned images that the threat does not allow; they were refused and nothing is scored "
        "(Carlini et al. 2019, arXiv 1902.06705)."
    ),
}
"""The meaning of every flag of the built-in parts."""

MASKING = frozenset(
    {
        "replay",
        "square",
        "sentinel",
        "unit_test",
        "gradient_mismatch",
        "zero_gradient",
        "large_eps",
        "dynamic",
        "randomized",
    }
)
"""Flags of an accuracy that may be too high. One of the baseline concerns every comparison with it too."""

FOUND = 0.95
"""Share of the planted adversarial examples that an attack finds, from which on there is no flag."""

SENTINEL_SHARE = 0.05
"""Share of the robust images that a sentinel may fool without a flag, or a single one: few attacks are AutoAttack."""

SQUARE_SHARE = 0.002
"""Share of the images that Square may take from the attacks before it without a flag, as in AutoAttack's own check; or
a single one, which chance explains."""

REPEATED = 0.01
"""Share of the images that may be repetitions of others without a flag, as in some official sets."""


def explained(raised: Iterable[str]) -> dict[str, str]:
    """Return the flags that were raised, by name, with their meanings."""
    return {flag: MEANING.get(flag, "Raised by a plug-in.") for flag in sorted(set(raised))}


def of_training(training: Collection[str], scored: Collection[str]) -> set[str]:
    """Return ``seen`` where an image is both trained on and scored, by the hashes of its pixels."""
    return {"seen"} if set(training) & set(scored) else set()


def of_images(distinct: int, n: int) -> set[str]:
    """Return ``repeated`` where more than `REPEATED` of ``n`` scored images have the pixels of another one.

    Args:
        distinct: number of different images.
        n: number of images.
    """
    return {"repeated"} if n - distinct > REPEATED * n else set()


def of_weights(sha256: str) -> set[str]:
    """Return ``refitted`` where a row has several hashes, joined by ``+``."""
    return {"refitted"} if "+" in sha256 else set()


def of_protocol(protocol: Protocol) -> set[str]:
    """Return ``not_comparable`` for every row of a board under ``protocol: paper``."""
    return {"not_comparable"} if protocol == "paper" else set()


def of_coverage(coverage: Coverage, family: FamilyName) -> set[str]:
    """Return ``partial`` where a nonlinearity of the network is not steered."""
    others = coverage.kinds.keys() - STEERED[family] - GATES
    return {"partial"} if coverage.steered < coverage.sites or others else set()


def of_stages(stages: Mapping[str, np.ndarray]) -> set[str]:
    """Return ``square`` where Square fools the network on images that are known to survive the stages before it.

    Args:
        stages: scores [n] after each stage, in order, the clean one first; NaN where they are not known.
    """
    names = list(stages)
    if "square" not in names or names.index("square") < 2:  # nothing but the clean stage before it
        return set()
    before = stages[names[names.index("square") - 1]]
    taken = (before == 1) & (stages["square"] == 0)
    return {"square"} if _is_much(taken.sum(), SQUARE_SHARE * len(taken)) else set()


def of_sentinels(survived: np.ndarray) -> set[str]:
    """Return ``sentinel`` where an attack without gradients fools the network on images held to be robust.

    Args:
        survived: which of these images have survived it, 1 or 0, [k].
    """
    return {"sentinel"} if _is_much((1 - survived).sum(), SENTINEL_SHARE * len(survived)) else set()


def _is_much(images: float, allowed: float) -> bool:
    """Return whether so many images are more than is allowed, and more than a single one, which chance explains."""
    return images > max(allowed, 1)


def of_unit_test(share: float | None) -> set[str]:
    """Return ``unit_test`` where the attack found too small a share of the planted examples; None if there are none."""
    return {"unit_test"} if share is not None and share < FOUND else set()


def of_published(clean: np.ndarray, published_clean: float) -> set[str]:
    """Return ``unlike_published`` where chance does not explain the distance from the published clean accuracy.

    Args:
        clean: clean scores [n] of the untouched network.
        published_clean: published accuracy in [0, 1].
    """
    return {"unlike_published"} if unlike(round(float(clean.sum())), len(clean), published_clean) else set()


def of_replay(own: np.ndarray, robust: np.ndarray, points: float) -> set[str]:
    """Return ``replay`` where adversarial images found at other β lower the accuracy further.

    Args:
        own: robust scores [n] against the row's own attack.
        robust: robust scores [n] when the others' adversarial images count too.
        points: percentage points that the accuracy may fall by without a flag, or a single image; 0 for none at all.
    """
    taken = (own > robust).sum()
    return {"replay"} if taken and (not points or _is_much(taken, points * len(own) / 100)) else set()
