"""Finds cells in pictures of whole blood smears and cuts them out, one small picture per cell.

`python -m tools.segment` is the command line. It uses, in this order: `reading` (files to arrays),
`stain` and `phase` (arrays to masks), `cells` (masks to cells), `crops` and `overlay` (cells to
pictures). The package needs scikit-image and reads files by `data_sources`.
"""
