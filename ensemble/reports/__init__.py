"""What a person sees of a result.

render.py             a command's result -> tables: which, in what order, with which notes
table.py              one table, as Markdown, plain text or on a terminal
member_tables.py      members, and a trial of several
decision_tables.py    the stack beside members and baselines
prediction_tables.py  label files
comparison_tables.py  evaluate and compare
bench_tables.py       how well a machine is used
documents.py          the tables as report.md and report.json
figures.py            pictures
"""
