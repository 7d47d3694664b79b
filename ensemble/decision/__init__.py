"""From member logits to labels and error rates: statistics on arrays, without images or networks.

rates.py           error rates, AUC, thresholding, and the checks of logits, labels and predictions
objective.py       what a threshold minimises: HTER, a weighted error, or one rate under a bound on the other
threshold.py       the threshold that is best for an objective, by an exact sweep
stacker.py         linear combinations of member logits
cross_fitting.py   rules from member logits to predictions, and their nested cross-fitting
fold_offsets.py    offsets between the logits of fold models
bootstrap.py       stratified resampling of rows or groups
intervals.py       intervals of error rates: Jeffreys, percentile, and for a new set of images
class_intervals.py intervals of the error rates of several classes and of their mean
comparison.py      error rates of fixed predictions, and the comparison of two sets of predictions
refits.py          the bootstrap that refits the threshold in every replicate; the interval of the nested HTER
assessment.py      apparent and nested error rates of a rule, with intervals
label_issues.py    confident learning: labels that the model contradicts
label_noise.py     how much HTER wrong labels alone cause at most
decision.py        fits the stacker and the threshold that are deployed, and assesses them
shift.py           whether new images have the class shares of the training images
averaging.py       how averaging the fold models changes the error rates and the best threshold
deploy.py          labels for new images, and the error rates to expect
cascade.py         evaluates fewer members and views on images whose label is clear early
"""
