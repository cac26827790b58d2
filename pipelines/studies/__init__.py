"""Studies: one file says which arms are compared, and how; `gwp study FILE` runs it.

    document/study, judgements   the file: shared stages, arms, seeds, judgements, comparisons
             sets                its sets: recorded for it, or there already
             scale               the same document, smaller
    cells/   pieces, plan        document -> pieces of work, and what each of them is in full
             sets                a set as a source, and the part of it that a stage sees
             checks              what would end it late, or make it untrue
             hashes, results     what made a piece; which are done, stale or broken
             data                recordings, one codec and the latents of every mixture, made once
             trial, judge        one piece, in a trial of Ray Tune: stages, cells, controls
             tune                pieces -> trials, as many at once as the cluster holds
    outcome/ figures, page       results -> `study.json`, table, plots, page
             held_out            which held-out episodes are better than without a model
    run                          all of it in order

A piece is a shared stage, a cell (arm x demonstrations x seed) or a control. It is done when its
`result.json` is there, which comes last and carries the hash of what made it: the resolved stage
files, the recordings, and the piece it starts from. Judgements of a cell are results of their own,
so that another one trains nothing again. A trial holds no CPUs: the workers of Ray Train and its
decoders ask for theirs, and no more trials run at once than the cluster has CPUs for, so that
none waits for what another one keeps.

    <storage>/<name>/  study.json study.txt study.html  what came of it
                       document.json                    what was asked
                       cells/<id>/                      result.json, bundle, judged/<judgement>.json
                       controls/                        chance and blind replay, once each
    <storage>/common/  data/ codec/ cache/              recordings, codec and text encoder, latents
                       runs/                            run folders of all stages and cells

All below `common` is named by hashes of what made it, so that studies which record, train or start
from the same do it once.
"""
