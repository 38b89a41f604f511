"""The labelling protocol in plain files: what a round asks, what people answer, what it means.

RUN/labelling/
    settings.json                 annotators, share of images that all of them label, blind or not
    doubts.json                   labelled images that the next batch asks again
    round_NNN/                    one batch; a later part of the same round is round_NNN_part_M
        images/INDEX.png          each image at its original resolution
        batch.json                what is asked; written last, so a folder without it is no batch
        answers.jsonl             one line per answer, appended under a lock and fsynced
        closed.json               the answers that the learner took; later ones are corrections
    validation/                   the batch of the validation sample, where it has no labels

The page of `tools.label` is one client of these files. Nothing here needs a network or a web page.
"""
