"""report.html: the page of a run, from its verdict to its provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.diagnostics import Diagnostics
from ensemble.decision.intervals import NORMAL
from ensemble.decision.label_noise import noise_in_short
from ensemble.decision.rates import ErrorRates
from ensemble.errors import printable
from ensemble.prediction_results import PredictionFacts
from ensemble.reports.decision_tables import decision_warnings
from ensemble.reports.galleries import doubtful_galleries, doubtful_note, error_galleries
from ensemble.reports.html import Figure, Tile, page
from ensemble.reports.measures import class_names, error_text, figure, interval_text, is_better
from ensemble.reports.member_tables import chance_notes, origin_notes
from ensemble.reports.prediction_tables import Facts, is_constant, is_known, label_file_warnings, prediction_table
from ensemble.reports.render import report_tables
from ensemble.reports.report_figures import (
    History,
    class_rates_figure,
    confusion_figure,
    rate_figures,
    training_figures,
)
from ensemble.reports.screen import on_screen
from ensemble.reports.summary import report_summary
from ensemble.reports.table import Table
from ensemble.reports.targets_tables import targets_tables
from ensemble.results import ReportResult, TargetsResult
from ensemble.runs.run import RunFacts


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the page shows of a run beside its `ReportResult`.

    Attributes
    ----------
    facts : RunFacts
    counts : tuple of int
        The number of images of each class.
    diagnostics : Diagnostics or None
        Of the decision with test-time augmentation; None before `thera fit-stacker`.
    histories : mapping of str to sequence
        The histories of the folds of each finished member.
    thumbnails : mapping of str to bytes
        WebP files by id; empty where the images are not there.
    without_thumbnails : str
        Why images are not shown, in a sentence; empty where they are.
    attribution : tuple of Figure
        What the networks look at; without figures, the section is left out.
    """

    facts: RunFacts
    counts: tuple[int, ...]
    diagnostics: Diagnostics | None = None
    histories: Mapping[str, Sequence[History]] = field(default_factory=dict)
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    without_thumbnails: str = ""
    attribution: tuple[Figure, ...] = ()


def report_page(result: ReportResult, evidence: Evidence) -> bytes:
    """Return the page of a run as HTML. The same results give the same bytes."""
    decision = None if result.decisions is None else result.decisions.tta
    diagnostics = evidence.diagnostics
    names = class_names(result.classes or evidence.facts.classes, len(evidence.counts))
    return page(
        "report.html",
        title=f"Run {printable(result.run.name)}",
        verdict=verdict(result),
        tiles=_tiles(result),
        warnings=_warnings(result),
        data=_data_table(result, evidence, names),
        tables=on_screen(replace(result, predictions={}))[:-1],  # label files have a section of their own
        all_tables=report_tables(result),
        figures=_rate_figures(decision, diagnostics, names),
        training=training_figures(evidence.histories),
        errors=None if diagnostics is None else error_galleries(diagnostics, names, evidence.thumbnails),
        doubtful=None if diagnostics is None else doubtful_galleries(diagnostics, names, evidence.thumbnails),
        doubtful_note="" if diagnostics is None else doubtful_note(diagnostics, names),
        without_thumbnails=evidence.without_thumbnails,
        attribution=evidence.attribution,
        shift=[prediction_table(result.predictions), _shares_table(result.predictions)] if result.predictions else [],
        provenance=_provenance(result, evidence),
        history=_history_table(evidence.facts),
    )


def targets_page(result: TargetsResult) -> bytes:
    """Return the page of several targets: their tables, and where the page of each target is."""
    return page(
        "targets.html",
        title=f"Targets of {printable(result.run.name)}",
        tables=targets_tables(result),
        targets=[printable(name) for name in result.targets],
    )


def verdict(result: ReportResult) -> str:
    """Return in one sentence what a run is worth.

    The usual case has a sentence of its own. Several label files, a file whose rates are not known, and a stack or a
    member that is no better than a constant answer are said in the words of the summary.
    """
    if result.decisions is None or len(result.predictions) > 1:
        return _joined(report_summary(result).notes)
    decision = result.decisions.tta
    nested = figure(decision.stacked)
    if not is_better(decision.stacked) or not all(is_known(facts) for facts in result.predictions.values()):
        return _joined(report_summary(result).notes)
    if any(is_constant(facts) for facts in result.predictions.values()):
        return _joined(report_summary(result).notes)
    count = len(decision.stacker.members)
    stacked = f"the stack of {count} members" if count > 1 else f"the member {decision.stacker.members[0]}"
    coin = error_text(nested.constant) if nested.is_error else f"{nested.constant:.4f} at most"
    parts = [f"{stacked} has {nested.text}, nested", f"{_chance(decision)} has {coin}"]
    if noise := noise_in_short(decision.noise):
        parts.append(noise)
    sentence = ", ".join(parts[:-1]) + f", and {parts[-1]}."
    for name, facts in result.predictions.items():
        expected = figure(facts.expectation).text
        return f"The label file of {printable(name)} is expected to have {expected}; {sentence}"
    return sentence[0].upper() + sentence[1:]


def _chance(decision: Decision | ClassDecision) -> str:
    """Return what an error rate is compared with: for two classes a coin has the rate of a constant answer."""
    return "a coin" if isinstance(decision, Decision) else "a constant answer"


def _joined(lines: Sequence[str]) -> str:
    """Return sentences as one."""
    first, *others = (line.rstrip(".") for line in lines)
    return "; ".join((first, *(each[0].lower() + each[1:] for each in others))) + "."


def _tiles(result: ReportResult) -> tuple[Tile, ...]:
    if result.decisions is None:
        return ()
    decision = result.decisions.tta
    nested = figure(decision.stacked)
    tiles = []
    if len(result.predictions) == 1:
        ((name, facts),) = result.predictions.items()
        expected = figure(facts.expectation)
        if is_known(facts):
            tiles.append(Tile(f"expected {expected.name}, {printable(name)}", *_value_of(facts)))
    tiles.append(Tile(f"nested {nested.name} of the stack", f"{nested.value:.4f}", interval_text(nested.interval)))
    optimism = decision.optimism
    tiles.append(Tile("apparent", f"{_apparent(decision):.4f}", f"optimism {optimism:+.4f}"))
    coin = error_text(nested.constant) if nested.is_error else f"{nested.constant:.4f}"
    tiles.append(Tile(_chance(decision), coin, "" if nested.is_error else "at most"))
    if isinstance(decision, Decision) and decision.noise is not None:
        tiles.append(Tile("noise floor", f"≤ {decision.noise.rates.hter:.4f}", "labels wrong at random, 95 %"))
    elif isinstance(decision, ClassDecision) and decision.noise is not None:
        noise = decision.noise
        tiles.append(
            Tile("doubted labels, mean of the classes", f"{noise.rates.mean_error:.4f}", interval_text(noise.interval))
        )
    return tuple(tiles)


def _value_of(facts: Facts) -> tuple[str, str]:
    expected = figure(facts.expectation)
    if is_constant(facts):
        return error_text(expected.constant) if expected.is_error else f"{expected.value:.4f}", "one label for all"
    return f"{expected.value:.4f}", interval_text(expected.interval)


def _apparent(decision: Decision | ClassDecision) -> float:
    """Return the apparent value of the measure that the stack is judged by."""
    nested = figure(decision.stacked)
    return nested.value - decision.optimism if nested.is_error else nested.value + decision.optimism


def _warnings(result: ReportResult) -> tuple[str, ...]:
    """Return what speaks against the members, the stack and the label files."""
    if result.decisions is None:
        of_rules: tuple[str, ...] = chance_notes([member.assessment for member in result.members])
    else:
        of_rules = decision_warnings(result.decisions.tta)
    sentences = (
        *of_rules,
        *(f"{member.name}: {note}" for member in result.members for note in origin_notes(member)),
        *(
            f"{printable(name)}: {warning}"
            for name, facts in result.predictions.items()
            for warning in label_file_warnings(facts)
        ),
    )
    return tuple(sentence[0].upper() + sentence[1:].removesuffix(".") + "." for sentence in sentences)


def _data_table(result: ReportResult, evidence: Evidence, names: Sequence[str]) -> Table:
    facts, total = evidence.facts, sum(evidence.counts)
    height, width = facts.size
    size = f"{width} × {height} pixels" + (f", resized to {facts.resize}" if facts.resize else "")
    shares = zip(names, evidence.counts, strict=True)
    rows = [
        ("images", str(result.images)),
        *((f"label {name}" if names == ("0", "1") else name, f"{n} ({100 * n / total:.1f} %)") for name, n in shares),
        ("size", size),
        ("folds", str(result.folds)),
    ]
    notes = tuple(map(printable, result.data_notes)) or ("There are no notes on the images.",)
    return Table("Training images", ("what", "value"), tuple(rows), notes, numbers=False)


def confusion_of(decision: Decision | ClassDecision) -> tuple[tuple[int, ...], ...]:
    """Return the nested confusion matrix of the stack, counts [label][prediction]."""
    rates = decision.nested
    if not isinstance(rates, ErrorRates):
        return rates.confusion
    false_1, false_0 = round(rates.fpr * rates.n_neg), round(rates.fnr * rates.n_pos)
    return (rates.n_neg - false_1, false_1), (false_0, rates.n_pos - false_0)


def _rate_figures(
    decision: Decision | ClassDecision | None, diagnostics: Diagnostics | None, names: Sequence[str]
) -> tuple[Figure, ...]:
    if isinstance(decision, ClassDecision):
        return (class_rates_figure(decision, names), confusion_figure(confusion_of(decision), names))
    if decision is None or diagnostics is None or diagnostics.logits is None:
        return ()
    curves = rate_figures(decision, diagnostics, diagnostics.logits)
    return (*curves, confusion_figure(confusion_of(decision), names))


def _shares(facts: Facts) -> list[tuple[str, float, float, float, float]]:
    """Return class, shares of training and new images, standard error and p-value: of two classes for label 0 alone."""
    if isinstance(facts, PredictionFacts):
        check = facts.share_check
        return [("0", check.oof_share, check.new_share, check.error, check.p_value)]
    checks, names = facts.share_check, class_names(facts.classes, len(facts.classes))
    return [*zip(names, checks.oof_shares, checks.new_shares, checks.errors, checks.p_values, strict=True)]


def _shares_table(predictions: Mapping[str, Facts]) -> Table:
    """Return which shares single fold models predict of training and of new images, at one decision."""
    rows = []
    for name, facts in predictions.items():
        for label, before, now, error, p_value in _shares(facts):
            cells = f"{before:.4f}", f"{now:.4f}", f"{now - before:+.4f} ± {NORMAL * error:.4f}", f"{p_value:.2g}"
            rows.append((printable(name), label, *cells))
    return Table(
        "Shares of the predicted classes",
        ("set", "predicted", "training images", "new images", "difference, 95 %", "p"),
        tuple(rows),
        (
            "Of single fold models, at one threshold or with the same offsets: a difference beyond chance means other "
            "images, or another mix of classes, than in training.",
        ),
    )


# --- provenance -------------------------------------------------------------------------------------------------------


def _provenance(result: ReportResult, evidence: Evidence) -> tuple[Table, ...]:
    facts = evidence.facts
    run = printable(result.run.name)
    settings = [
        ("command of this page", f"thera report --run {run}"),
        ("images", place(facts.images)),
        ("labels", place(facts.labels)),
        ("seed", str(facts.seed)),
        *((f"objective of {key}", each.objective.text) for key, each in _decisions(result)),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))),
    ]
    hashes = [
        ("data: ids, labels, groups, images", facts.fingerprint),
        *((name, sha256) for name, sha256 in (("folds.csv", facts.folds_sha256), ("images.csv", facts.images_sha256))),
        *((name, " or ".join(sha256)) for name, sha256 in sorted(facts.artifacts.items())),
    ]
    for name, predicted in result.predictions.items():
        hashes += [(f"predictions/{printable(name)}/{file}", sha256) for file, sha256 in predicted.files.items()]
        hashes.append((f"images of {printable(name)}", predicted.request.fingerprint))
    kept = tuple((printable(name), sha256) for name, sha256 in hashes if sha256)
    return (
        Table("Settings and versions", ("what", "value"), tuple((a, printable(b)) for a, b in settings), numbers=False),
        Table("SHA-256", ("of", "hash"), kept, ("thera verify compares them with the files.",), numbers=False),
    )


def _decisions(result: ReportResult) -> tuple[tuple[str, Decision | ClassDecision], ...]:
    return () if result.decisions is None else (("the decision", result.decisions.tta),)


def place(path: str) -> str:
    """Return a path as it is shown to others: of an absolute one, which names folders of a machine, the last part.

    >>> place("photos/hat"), place("/home/ann/photos/hat")
    ('photos/hat', 'hat')
    """
    parts = path.replace("\\", "/").split("/")
    return parts[-1] if parts[0] == "" or parts[0].endswith(":") else path


def _history_table(facts: RunFacts) -> Table:
    rows = tuple((entry.when, printable(entry.command), f"{entry.seconds:.0f}") for entry in facts.history)
    return Table("Commands that were run", ("when, UTC", "command", "seconds"), rows, numbers=False)
