"""The card itself: sections in the order of Mitchell et al. 2019, from facts to Markdown; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from concilia_kit.wire.models import NOTICE

from concilia_aggregator.card import figures
from concilia_aggregator.card.facts import Facts
from concilia_aggregator.card.limits import limits
from concilia_aggregator.card.markdown import bullets, code, plain, table
from concilia_aggregator.card.metrics import metrics
from concilia_aggregator.card.privacy import privacy
from concilia_aggregator.card.reading import reading

_FINDINGS = 5  # of a verification, that are named
# Of a job's settings, what other sections tell.
_TOLD_ELSEWHERE = frozenset(
    {"name", "architecture", "initial", "strategy", "encoding", "local", "evaluation", "classification"}
)
SOURCES = (
    "Form: Mitchell et al., Model Cards for Model Reporting (FAT* 2019). Intervals are of 95 %: Wilson's (1927) of "
    "shares, and of balanced accuracy, the mean recall over classes (Brodersen et al. 2010), Newcombe's square-and-add "
    "of them (1998; MOVER, Zou and Donner 2008). AUC from histograms of 32 bins (Mann-Whitney). Calibration error, a "
    "class at a time (Naeini et al. 2015; Nixon et al. 2019): how far the share of true cases lies outside the bin of "
    "probabilities that they were given, averaged over pictures; what lies within a bin of 1/32 is not seen."
)


def card(facts: Facts) -> str:
    """A published model's card. The same facts give the same text."""
    sections = (
        (f"# {plain(facts.job.spec.name)}", f"**{NOTICE}**\n\n{_model(facts)}"),
        ("## Intended use", _use(facts)),
        ("## Factors", _factors()),
        ("## Training data", _training_data(facts)),
        ("## Evaluation data", _evaluation_data(facts)),
        ("## Training", _training(facts)),
        ("## Privacy", privacy(facts)),
        ("## Metrics", metrics(facts)),
        ("## Reading its answers", reading(facts.job, facts.model)),
        ("## Limits", bullets(limits(facts))),
        ("## Lineage", _lineage(facts)),
        ("## Verification", _verification(facts)),
        ("## How this was made", f"From the job's own records, by its aggregator. {SOURCES}"),
    )
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections if text) + "\n"


def _model(facts: Facts) -> str:
    job = facts.job
    ended = [each.closed_at for each in job.rounds if each.closed_at is not None]
    manifest = job.manifest
    told = job.spec.classification
    rows = [
        ("Model (SHA-256)", code(facts.model)),
        ("Job", code(job.id)),
        ("Network", f"{code(str(job.spec.architecture))}, pictures of {_side(facts)}"),
        ("Classes", ", ".join(f"{plain(each.name)} ({code(each.code)})" for each in told.classes)),
        ("Must not be missed", "–" if told.critical is None else code(told.critical)),
        ("Created", f"{job.created_at:%Y-%m-%d %H:%M} UTC by {code(job.created_by)}"),
        ("Last round closed", f"{max(ended):%Y-%m-%d %H:%M} UTC" if ended else "–"),
        ("Code", "–" if manifest is None else plain(manifest.code)),
    ]
    return table(("", ""), rows)


def _use(facts: Facts) -> str:
    return bullets(
        (
            f"For research: telling apart {len(facts.job.spec.classification.classes)} classes of "
            f"{plain(facts.job.spec.classification.name)} on pictures like those below, and studying how hospitals "
            "train together.",
            "Not for diagnosis, triage, screening or the choice of a treatment, and not as a second opinion.",
            "Not for pictures of other kinds, devices or patients than the sites': these figures tell nothing of them.",
        )
    )


def _factors() -> str:
    return (
        "Figures are by site and by class. Age, sex, skin tone, device and how pictures were chosen are not recorded: "
        "there are no figures by them, and differences between such groups are unknown, not absent."
    )


def _training_data(facts: Facts) -> str:
    return _counts(facts, "training_images", "training_lesions") + (
        "\n\nCounts as the hospitals last registered them; pictures, lesions and names of files stay with them."
    )


def _evaluation_data(facts: Facts) -> str:
    told = facts.job.spec.classification
    rows = []
    for hospital, report in facts.by_site():
        cells = [str(sum(row)) for row in report.confusion]
        rows.append([plain(facts.site(hospital)), *cells, str(report.images), str(report.lesions)])
    matrix = figures.confusion(facts.reports.values(), len(told.classes))
    images, lesions = (sum(getattr(each, what) for each in facts.reports.values()) for what in ("images", "lesions"))
    rows.append(["**all**", *(str(sum(row)) for row in matrix), str(images), str(lesions)])
    return "Held-out lesions of each site, never trained on, that the model was measured on.\n\n" + table(
        ("site", *map(code, told.codes), "pictures", "lesions"), rows
    )


def _counts(facts: Facts, images: str, lesions: str) -> str:
    told = facts.job.spec.classification
    rounds = {each: sum(each in accepted for accepted in facts.accepted.values()) for each in facts.hospitals}
    rows = []
    for hospital in facts.hospitals:
        node = facts.nodes.get(hospital)
        start, end = [plain(facts.site(hospital)), code(hospital)], [f"{rounds[hospital]} of {len(facts.accepted)}"]
        if node is None or node.classification != told:
            rows.append([*start, "–", *("–" for _ in told.classes), "–", *end])
            continue
        cells = [str(count) for count in getattr(node, images)]
        rows.append([*start, plain(node.source), *cells, str(getattr(node, lesions)), *end])
    return table(("site", "address", "source", *map(code, told.codes), "lesions", "rounds given to"), rows)


def _training(facts: Facts) -> str:
    spec = facts.job.spec.model_dump(mode="json")
    rows = [(plain(name), _setting(value)) for name, value in spec.items() if name not in _TOLD_ELSEWHERE]
    strategy = {name: value for name, value in spec["strategy"].items() if name == "name" or value is not None}
    rows += [("encoding", plain(str(facts.job.spec.encoding)))]
    rows += [("strategy", ", ".join(f"{plain(name)} {_setting(value)}" for name, value in strategy.items()))]
    rows += [(f"local: {plain(name)}", _setting(value)) for name, value in spec["local"].items()]
    return table(("setting", "value"), rows)


def _setting(value: Any) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{plain(str(name))} {_setting(each)}" for name, each in value.items())
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return code(value)
    return plain(str(value))


def _lineage(facts: Facts) -> str:
    rows = []
    for each in facts.job.rounds:
        if each.round and each.model:
            names = ", ".join(sorted(plain(facts.site(hospital)) for hospital in facts.accepted.get(each.round, ())))
            rejected = ", ".join(f"{plain(facts.site(it.hospital))}: {plain(it.reason)}" for it in each.rejected)
            rows.append((str(each.round), code(each.model), names or "–", rejected or "–"))
    return "\n\n".join(
        (
            f"Ledger: contract {code(facts.ledger.contract)} on chain {facts.ledger.chain_id}.",
            f"Initial weights: {code(facts.job.spec.initial)}.",
            table(("round", "model (SHA-256)", "contributors", "left out"), rows),
        )
    )


def _verification(facts: Facts) -> str:
    found = facts.verification
    anybody = f"Anybody who may read its records can recompute it: `concilia verify {facts.job.id}`."
    if found is None or found.verdict is None:
        return f"No verification by the aggregator has come to a verdict. {anybody}"
    verdict = found.verdict
    when = "" if found.finished_at is None else f" on {found.finished_at:%Y-%m-%d %H:%M} UTC"
    done = (
        f"{verdict.rounds} rounds folded again, {verdict.updates} updates ({verdict.rejected} rejected), "
        f"{verdict.signatures} signatures"
    )
    if verdict.ok:
        return f"Verified{when}: {done}; all agrees to the last bit. {anybody}"
    named = [f"round {each.round}: {plain(each.what)}" for each in verdict.findings[:_FINDINGS]]
    return f"**Not verified**{when}: {len(verdict.findings)} findings ({done}).\n\n{bullets(named)}\n\n{anybody}"


def _side(facts: Facts) -> str:
    return f"{facts.job.spec.local.image_size} × {facts.job.spec.local.image_size} pixels"
