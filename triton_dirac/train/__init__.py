"""Training of whole nets by the published recipe: ``python -m triton_dirac.train --help``.

    data.py, cifar.py, folders.py   images and labels, and what is done to them at random
    recipe.py                       batch, epochs, learning rate and its drops, weight decay
    step.py                         one step: eager, compiled, or a CUDA graph
    loop.py                         epochs, evaluation, stopping and going on
    checkpoint.py                   all of a training's state, in one file that is whole or the one before
    processes.py                    several GPUs or machines (torchrun)
    log.py, progress.py             what is left behind, and what is seen meanwhile

All that is random is a function of the seed, the epoch and the step (the order of images, crops and flips): a training
that was ended at any step goes on as if it had not been.
"""
