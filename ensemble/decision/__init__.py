"""From member logits to labels and error rates: statistics on arrays, without images or networks.

rates.py           error rates, AUC, thresholding, and the checks of logits, labels and predictions
objective.py       what a threshold minimises: HTER, a weighted error, or one rate under a bound on the other
threshold.py       the threshold that is best for an objective, by an exact sweep
class_objective.py what the offsets of more than two classes minimise: mean class error, macro F1 or accuracy
class_offsets.py   the offsets of the classes that are best for an objective, by exact sweeps over one at a time
stacker.py         linear combinations of member logits
class_stacker.py   the same for the logits of more than two classes
votes.py           votes of the members as scores
cross_fitting.py   rules from member logits to predictions, and their nested cross-fitting
fold_offsets.py    offsets between the logits of fold models
bootstrap.py       stratified resampling of rows or groups
intervals.py       intervals of error rates: Jeffreys, percentile, and for a new set of images
class_intervals.py intervals of the error rates of several classes and of their mean
comparison.py      error rates of fixed predictions, and the comparison of two sets of predictions
class_comparison.py the same for more than two classes
cuts.py            the cuts among which a replicate looks for the best one
refits.py          the bootstrap that refits the threshold in every replicate; the interval of the nested HTER
class_refits.py    the same for the offsets of more than two classes
assessment.py      apparent and nested error rates of a rule, with intervals
class_assessment.py the same among more than two classes
joint.py           the rates of several targets together
label_issues.py    confident learning: labels that the model contradicts
distillation.py  what a student learns: probabilities of its teacher, mixed with labels
label_noise.py     how much HTER wrong labels alone cause at most
decision.py        fits the stacker and the threshold that are deployed, and assesses them
class_decision.py  the same among more than two classes
diagnostics.py     what a report shows of a decision row by row: nested logits, curves, doubtful labels
shift.py           whether new images have the class shares of the training images
usual_shares.py    the same where only the decision is known, as in an exported model
averaging.py       how averaging the fold models changes the error rates and the best threshold
deploy.py          labels for new images, and the error rates to expect
class_deploy.py    the same for more than two classes
cascade.py         evaluates fewer members and views on images whose label is clear early
"""
