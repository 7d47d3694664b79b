"""The model card of a run: Markdown with metadata that the Hugging Face hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ensemble.decision.class_decision import ClassDecision
from ensemble.decision.decision import Decision
from ensemble.decision.label_noise import describe_class_noise, describe_noise
from ensemble.errors import printable
from ensemble.prediction_results import PredictionFacts
from ensemble.reports.measures import Figure as Measured
from ensemble.reports.measures import Rule, class_names, error_text, figure, interval_text, loss
from ensemble.reports.prediction_tables import Facts, is_known, label_file_warnings
from ensemble.reports.report_page import Evidence, place, verdict
from ensemble.results import ReportResult

SPECIAL = re.compile(r"[\\`*_\[\]|]|^[#+=-]|(?<=^\d)[.)]|(?<=^\d\d)[.)]")
"""What means something in Markdown: within a line, or at its beginning."""

OF_HTML = re.compile(r"[<>&~$@]|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What means something in HTML, or in extensions of Markdown: links and mentions without brackets, formulas."""

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that need no quotes in a shell and no escapes in Python."""


def model_card(result: ReportResult, evidence: Evidence) -> str:
    """Return the model card of a run: metadata in YAML, then Markdown. Names from files are shown as text.

    The measures are nested or expected, with 95 % intervals. Of absolute paths only the last part is shown.
    """
    title = f"# {in_markdown(result.run.name)}"
    sections = ("\n\n".join(section) for section in _sections(result, evidence))
    return f"---\n{_metadata(result, evidence).strip()}\n---\n\n" + "\n\n".join((title, *sections)) + "\n"


def in_markdown(text: object) -> str:
    """Return a text as one line of Markdown that shows it as it is.

    >>> print(in_markdown("<b> [x](y) a_b"))
    &#60;b&#62; \\[x\\](y) a\\_b
    """
    escaped = SPECIAL.sub(r"\\\g<0>", printable(text))
    return OF_HTML.sub(lambda match: f"&#{ord(match[0])};", escaped)


def _metadata(result: ReportResult, evidence: Evidence) -> str:
    """Return the YAML of the card; only the hub's library knows its form."""
    from huggingface_hub import EvalResult, ModelCardData

    data = printable(place(evidence.facts.images).rsplit("/", 1)[-1]) or "images"
    evaluations = []

    def add(rule: str, dataset: str, split: str, measured: Measured) -> None:
        interval = [round(end, 6) for end in (measured.interval.low, measured.interval.high)]
        evaluations.append(
            EvalResult(
                task_type="image-classification",
                dataset_type="imagefolder",
                dataset_name=dataset,
                dataset_split=split,
                metric_type=measured.name.lower().replace(" ", "_"),
                metric_name=measured.name,
                metric_value=round(measured.value, 6),
                metric_args={"rule": rule, "interval_95": interval},
            )
        )

    for name, rule in _rules(result):
        add(name, data, "training images, out of fold, nested", figure(rule))
    for name, facts in result.predictions.items():
        if is_known(facts):
            add("label file", printable(name), "expected, not measured", figure(facts.expectation))
    card = ModelCardData(
        language=None,
        library_name="thera",
        pipeline_tag="image-classification",
        tags=["image-classification", "ensemble", "thera"],
        metrics=sorted({evaluation.metric_type for evaluation in evaluations}),
        model_name=printable(result.run.name),
        eval_results=evaluations,
    )
    return card.to_yaml()


def _rules(result: ReportResult) -> list[tuple[str, Rule]]:
    """Return the stack, or without a decision the best member."""
    if result.decisions is None:
        best = min((member.assessment for member in result.members), key=loss)
        return [(best.name, best)]
    return [("stack", result.decisions.tta.stacked)]


def _sections(result: ReportResult, evidence: Evidence) -> Iterator[list[str]]:
    yield [in_markdown(verdict(result)), *_kind(result)]
    yield ["## Intended use", *_use(result, evidence)]
    yield ["## Data", *_data(result, evidence)]
    yield ["## How good it is", *_measures(result)]
    yield ["## Limits", _list(_limits(result))]
    yield ["## How to load it", *_loading(result)]
    yield ["## Where it comes from", *_provenance(result, evidence)]


def _kind(result: ReportResult) -> Iterator[str]:
    every, folds = [member.name for member in result.members], result.folds
    names = every if result.decisions is None else list(result.decisions.tta.stacker.members)
    count, further = len(names), [name for name in every if name not in names]
    yield (
        f"An image classifier of thera: {count} network{'s' * (count > 1)} ({_listed(names)}), each trained on {folds} "
        f"folds, so that there are {count * folds} sets of weights. The logits of each network are averaged over its "
        f"folds{'' if result.decisions is None or count == 1 else ' and combined by a linear stacker'}."
    )
    if further:
        yield f"The folder holds further members, which do not influence its answers: {_listed(further)}."


def _use(result: ReportResult, evidence: Evidence) -> Iterator[str]:
    names = class_names(result.classes, len(evidence.counts))
    height, width = evidence.facts.size
    yield (
        f"It labels images of {width} × {height} pixels with one of {len(names)} classes: {_listed(names)}. It is "
        "meant for images that were taken and cropped like the training images."
    )
    if result.decisions is not None:
        objective = result.decisions.tta.objective
        cut = "threshold is that" if isinstance(result.decisions.tta, Decision) else "offsets are those"
        yield f"The {cut} of {in_markdown(objective.description)}."
    yield "It is not meant to decide about people alone, nor to label other images without a measurement on them."


def _data(result: ReportResult, evidence: Evidence) -> Iterator[str]:
    facts, names = evidence.facts, class_names(result.classes, len(evidence.counts))
    counts = ", ".join(f"{n} of {in_markdown(name)}" for name, n in zip(names, evidence.counts, strict=True))
    images = in_markdown(place(facts.images).rsplit("/", 1)[-1])
    yield f"{result.images} images of {images} with labels as given: {counts}. The card holds no image."
    if result.data_notes:
        yield _list(map(in_markdown, result.data_notes))


def _measures(result: ReportResult) -> Iterator[str]:
    rows = [("what", "measure", "value", "95 % interval")]
    for name, facts in result.predictions.items():
        expected = figure(facts.expectation)
        what = f"label file of {in_markdown(name)}, {facts.images} images"
        if is_known(facts):
            ends = f"{expected.interval.low:.4f} to {expected.interval.high:.4f}"
            rows.append((f"{what}, expected", expected.name, f"{expected.value:.4f}", ends))
        else:
            rows.append((f"{what}, of one fold model", expected.name, f"{expected.value:.4f}", ""))
    rules = _rules(result) if result.decisions is None else [("stack", result.decisions.tta.stacked)]
    if result.decisions is not None:
        rules += [(f"member {each.name}", each) for each in result.decisions.tta.members]
    for name, rule in rules:
        of_rule = figure(rule)
        ends = f"{of_rule.interval.low:.4f} to {of_rule.interval.high:.4f}"
        rows.append((f"{in_markdown(name)}, nested", of_rule.name, f"{of_rule.value:.4f}", ends))
    constant = figure(rules[0][1])
    value = error_text(constant.constant) if constant.is_error else f"{constant.constant:.4f}"
    rows.append(("one answer for all images", constant.name, value, ""))
    yield _table(rows)
    yield (
        "Nested: networks, stacker and threshold that predict an image were fitted without its fold. Expected: the "
        "nested figure, corrected for the effect of averaging the networks of all folds."
        if result.classes is None or len(result.classes) == 2
        else "Nested: networks, stacker and offsets that predict an image were fitted without its fold."
    )
    if result.decisions is not None and isinstance(result.decisions.tta, Decision):
        nested = result.decisions.tta.stacked
        yield (
            f"Of the stack: FPR {nested.nested.fpr:.4f} ({interval_text(nested.fpr)}), the error rate on label 0; FNR "
            f"{nested.nested.fnr:.4f} ({interval_text(nested.fnr)}), the error rate on label 1; HTER is their mean. "
            f"Apparent HTER {nested.apparent.hter:.4f}, optimism {nested.optimism:+.4f}."
        )


def _limits(result: ReportResult) -> Iterator[str]:
    yield "The figures hold for images like the training images, at any share of the classes for HTER and class error."
    if result.decisions is not None:
        decision = result.decisions.tta
        yield in_markdown(_noise(decision, result.classes))
        yield from map(in_markdown, decision.notes)
    for name, facts in result.predictions.items():
        yield from (in_markdown(f"{name}: {warning}") for warning in (*facts.caveats, *label_file_warnings(facts)))
        yield in_markdown(f"{name}: {_share_check(facts)}")
    yield "Groups of images that the labels do not name, such as people of one age, were not measured."


def _noise(decision: Decision | ClassDecision, classes: Sequence[str] | None) -> str:
    if isinstance(decision, Decision):
        return describe_noise(decision.noise, decision.nested.hter)
    return describe_class_noise(decision.noise, decision.nested.mean_error, class_names(classes, decision.classes))


def _share_check(facts: Facts) -> str:
    if isinstance(facts, PredictionFacts):
        return facts.share_check.message(facts.new_images)
    return facts.share_check.message(facts.new_images, class_names(facts.classes, len(facts.classes)))


def _loading(result: ReportResult) -> Iterator[str]:
    name = result.run.name
    run = name if PLAIN.fullmatch(name) else "RUN"
    yield f"Install thera, and put this folder at `{run}`; the weights of all folds must be in it."
    yield f"    thera predict --run {run} --images new_photos --tta --out labels.csv"
    yield "In Python:"
    lines = "import thera", f'model = thera.TheraClassifier.from_run("{run}")', 'print(model.predict("new_photos"))'
    yield "\n".join(f"    {line}" for line in lines)


def _provenance(result: ReportResult, evidence: Evidence) -> Iterator[str]:
    facts = evidence.facts
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))
    yield f"Seed {facts.seed}, {facts.folds} folds. Made with {in_markdown(versions)}."
    hashes = [f"data `{facts.fingerprint}`"]
    hashes += [f"{in_markdown(name)} `{' '.join(sha256)}`" for name, sha256 in sorted(facts.artifacts.items())]
    yield "SHA-256:"
    yield _list(hashes)
    yield "`report.html` has the figures, and `report.md` all tables."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(in_markdown, names))


def _list(lines: Iterator[str] | Sequence[str] | map[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, tuple("---:" if j == 2 else "---" for j in range(len(head))), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
