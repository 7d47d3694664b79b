"""What a person sees of a result.

screen.py             what a command prints: short tables, or all of them
render.py             a command's result -> all tables: which, in what order, with which notes
summary.py            what matters of a result, in at most five lines
table.py              one table, as Markdown and as text that fits the screen
measures.py           HTER, or the measure of the objective of more classes, in words
member_tables.py      members, and a trial of several
decision_tables.py    the stack beside members and baselines
prediction_tables.py  label files
comparison_tables.py  evaluate and compare
targets_tables.py     several targets, and their combination
clean_tables.py       doubtful labels, their review, and the score on reviewed labels
bench_tables.py       how well a machine is used
distil_tables.py      a student, its teacher and what both cost
export_tables.py      an exported model, and the labels that it gives
explore_tables.py    classes, sizes, formats and findings of a set of images
explore_figures.py   mean images and maps of a set of images
explore_page.py      the page of a set of images
documents.py          the tables as report.md and report.json
figures.py            pictures
review_page.py        the page on which doubtful labels are reviewed
attribution_figures.py  what the members look at: heat maps
report_page.py        report.html: the page of a run
report_figures.py     its figures
galleries.py          the images that the page shows one by one
model_card.py         the model card of a run
svg.py                figures as SVG in one style
thumbnails.py         small images as WebP files that fit a number of bytes
html.py               pages in one HTML file each, from templates/
"""
