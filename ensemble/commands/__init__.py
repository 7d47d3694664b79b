"""The commands, a file each, and the parts that they share. A run directory goes in, a typed result comes out.

explore.py      explore: what there is in a set of images, before training
explore_findings.py  the findings of explore, and their table
fit.py          fit: everything, from images and labels alone
choice.py       which members fit trains, and for how many epochs
run.py          run, demo and recipes: everything in order
targets.py      several targets of the same images: run, fit-stacker, predict and report for each
checks.py       options of a training command, checked before anything slow is imported
train.py        train-member and trial
starting_weights.py  the weights that a member starts from, of a file or of another member
fold_jobs.py    the fold models of members: begun, trained, written
training_issues.py  training rows that are left out, relabelled or weighed for doubtful labels, or by an overlay
fit_stacker.py  fit-stacker: the decision
remove_member.py  remove-member: a member and all that it has trained
predict.py      predict: compute, decide, write (the label file --out too)
prediction_files.py  the label file, table and facts of a prediction, written and read
predict_shards.py  predict --shards: any number of images, in shards
shard_listing.py  the list of the images of all shards
shard_jobs.py   the logits and the labels of one shard, which any machine can compute
shard_labels.py the labels of all shards: the threshold, and the label file
predict_model.py  predict --model: labels of an exported model, without torch
distil.py       distil: one small network that answers like the stack
export.py       export: the whole decision as one ONNX file
serve.py        serve: answers over HTTP with an exported model
push.py         push: an exported model and the model card, to the Hugging Face hub
fold_logits.py  the logits of the fold models: kept, computed, or a cascade of them
evaluate.py     evaluate and compare
report.py       report
clean.py        clean: the labels that are likely to be wrong, and an overlay that mends them
label_review.py  a review of doubtful labels, checked and applied
reviewed_scores.py  the score on the labels of an overlay, a secondary figure of the report
maps.py         what the members look at: report --maps
training_images.py  the images that a run was trained on, decoded or from their files
report_evidence.py  what the page of a report shows beside the tables: logits, histories, thumbnails
model_card_file.py  where the model card is written
verify.py       verify: every file against its type and its recorded hash
bench.py        bench
"""
