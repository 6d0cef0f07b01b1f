"""What a card warns of, found in the counts themselves; pure."""

from __future__ import annotations

from concilia_kit import judging
from concilia_kit.wire.strategy import StrategyName

from concilia_aggregator.card import figures, judged
from concilia_aggregator.card.facts import Facts
from concilia_aggregator.card.intervals import Interval
from concilia_aggregator.card.markdown import code, plain

FEW_HELD_OUT = 30
"""Held-out pictures below which a class's recall is hardly known: Wilson's interval is 0.34 wide at a half."""
FEW_TRAINING = 100
_DRAWN = "drawn "
_OWN = {
    StrategyName.FEDBN: "normalisation layers",
    StrategyName.FEDREP: "last layer",
}


def limits(facts: Facts) -> list[str]:
    """Sentences in Markdown, the gravest first."""
    return [*_of_sources(facts), *_of_sites(facts), *_of_classes(facts), *_of_measuring(facts)]


def _of_sources(facts: Facts) -> list[str]:
    sources = {node.source for node in facts.nodes.values()}
    found = []
    if any(source.startswith(_DRAWN) for source in sources):
        found.append(
            "**Pictures were drawn by a program** at least at one site: these figures say nothing of patients."
        )
    if len(sources) == 1:
        found.append(f"All pictures are of one source ({plain(*sources)}); how it does on others is not known.")
    return [*found, "It was measured at the sites that trained it, and at no other."]


def _of_sites(facts: Facts) -> list[str]:
    told = facts.job.spec.classification
    metric = judging.headline(told)
    found = []
    scored = []
    for hospital, report in facts.reports.items():
        own = judged.figure(metric, [report], told)
        if own is not None:
            bare = own if isinstance(own, Interval) else Interval(own, own, own)
            scored.append((bare, facts.site(hospital), report.images, judged.text(own)))
    if len(scored) > 1:
        worst, best = min(scored), max(scored)
        found.append(
            f"Worst site: {plain(worst[1])}, {plain(judging.words(metric, told))} {worst[3]} on {worst[2]} pictures, "
            f"{best[0].value - worst[0].value:.3f} below the best ({plain(best[1])}). Sites may lack classes, so that "
            "their means are of other classes."
        )
    silent = [facts.site(each) for each in facts.hospitals if each not in facts.reports]
    if silent:
        found.append(f"Trained it, and did not measure the published model: {', '.join(map(plain, silent))}.")
    return found


def _of_classes(facts: Facts) -> list[str]:
    told = facts.job.spec.classification
    matrix = figures.confusion(facts.reports.values(), len(told.classes))
    held_out = [sum(row) for row in matrix]
    training = _training(facts)
    found = []
    for place, each in enumerate(told.classes):
        words = []
        if held_out[place] < FEW_HELD_OUT:
            words.append(f"{held_out[place]} held-out pictures, too few to know its recall")
        if training is not None and training[place] < FEW_TRAINING:
            words.append(f"{training[place]} training pictures over all sites")
        if words:
            found.append(f"{plain(each.name)} ({code(each.code)}): {'; '.join(words)}.")
    found.append(
        "A picture of anything else is told to be one of these classes all the same, whatever notice of unusual "
        "pictures stands beside it."
    )
    return found


def _of_measuring(facts: Facts) -> list[str]:
    found = []
    own = next((word for name, word in _OWN.items() if facts.job.spec.strategy.name == name), None)
    if own is not None:
        found.append(
            f"**What was measured is not the published file alone**: each hospital measured it with its own {own}."
        )
    reports = facts.reports.values()
    overlapping = sum(report.overlapping_lesions for report in reports)
    if overlapping:
        found.append(f"**{overlapping} lesions are in training and held-out pictures both**: figures are too good.")
    if facts.job.spec.evaluation.max_images is not None:
        found.append(f"Measured on at most {facts.job.spec.evaluation.max_images} held-out pictures a site.")
    if skipped := sum(report.skipped_images for report in reports):
        found.append(f"{skipped} held-out pictures could not be read, and are in no figure.")
    if facts.job.spec.target is not None:
        found.append("Training ended by the score on the same held-out pictures, which makes it look better.")
    images, lesions = (sum(getattr(report, what) for report in reports) for what in ("images", "lesions"))
    if images > lesions:
        found.append(
            f"Intervals take pictures for independent; {images} pictures are of {lesions} lesions, so that the true "
            "ones are wider."
        )
    return found


def _training(facts: Facts) -> list[int] | None:
    """Training pictures by class over the sites that gave updates; None where one of them is not known so."""
    told = facts.job.spec.classification
    gave = {each for accepted in facts.accepted.values() for each in accepted}
    nodes = [facts.nodes[each] for each in gave if each in facts.nodes]
    if len(nodes) != len(gave) or any(node.classification != told for node in nodes):
        return None
    return [sum(node.training_images[place] for node in nodes) for place in range(len(told.classes))]
