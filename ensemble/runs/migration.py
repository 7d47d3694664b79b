"""Converts the JSON files of older versions: `read_json` passes their content through these functions.

Files of runs and members have kept their form. A file of another `schema` is not converted but refused.
"""

from __future__ import annotations

from typing import Any

FORMER_KINDS = {"folded": "fused"}
"""Former names of kinds of convolutions, which older files have, and their names today."""


def migrate_note(content: dict[str, Any]) -> dict[str, Any]:
    """Return `made_from.json` of any version in the current form: kinds of convolutions have their names of today."""
    return {**content, "files": {name: _with_current_kinds(facts) for name, facts in content["files"].items()}}


def _with_current_kinds(facts: dict[str, Any]) -> dict[str, Any]:
    changed = dict(facts)
    if "convolutions" in facts:
        changed["convolutions"] = _current_kind(facts["convolutions"])
    if facts.get("forced"):
        changed["forced"] = _with_current_kinds(facts["forced"])
    return changed


def _current_kind(kind: str) -> str:
    return FORMER_KINDS.get(kind, kind)


def migrate_facts(content: dict[str, Any]) -> dict[str, Any]:
    """Return `predictions.json` of any version in the current form.

    Older versions did not record the counts of rows, so the rates have counts of 0.
    """
    if "request" in content:
        return content

    def rates(old: dict[str, Any]) -> dict[str, Any]:
        return {"fpr": old["fpr"], "fnr": old["fnr"], "n_neg": 0, "n_pos": 0}

    def interval(ends: list[float] | None) -> dict[str, float] | None:
        return None if ends is None else {"low": ends[0], "high": ends[1]}

    requested = {key: content[f"{key}_asked"] for key in ("correction", "cascade", "precision", "convolutions")}
    requested["convolutions"] = _current_kind(requested["convolutions"])
    kept = {key: content[key] for key in ("fingerprint", "decision_sha256", "views", "prior")}
    return {
        **content,
        "request": {**requested, **kept, "combine": content.get("combine", "mean")},
        "expectation": {
            "correction": content["correction"],
            "averaging_measured": content["averaging_measured"],
            "corrections": [
                {
                    "correction": name,
                    "threshold": old["threshold"],
                    "rates": rates(old),
                    "share_of_label_0": old["share_of_label_0"],
                }
                for name, old in content["corrections"].items()
            ],
            "rates": rates(content["expected"]),
            "interval": interval(content["hter_interval"]),
            "new_set_interval": interval(content["expected_interval"]),
            "at_prior": content["at_prior"],
        },
        "assumed_share_of_label_0": content["taken_share_of_label_0"],
    }
