"""Studies: grids of settings, or the same modalities bound in different ways.

A study is a list of cells, each a recipe with some values changed, which run one after the other in their
own folders. Finished cells are skipped, and stages that cells share are trained once.
"""
