"""Raw scans to a tissue-segmentation study: strip, segment, map labels, synthesise, train nnU-Net, measure Dice.

study.py says what is wanted, plan.py cuts it into units, rules/ do them, runner.py runs those that are not done; tools/ call
the programs of others.
"""
