"""Many runs that answer one question: a grid of settings, or the same modalities bound in different ways.

A study is a list of cells, each a recipe with some values changed, run one after the other in folders of
their own. What is finished is not run again, and stages that cells share are trained once.
"""
