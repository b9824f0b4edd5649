"""Raw scans to a tissue-segmentation study: strip, segment, map labels, synthesise, train nnU-Net, measure Dice.

study.py says what is wanted, plan.py cuts it into units, runner.py runs those that are not done; tools/ call the programs
of others, tables/ say what their labels are.
"""
