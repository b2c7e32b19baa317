"""The machine below the workflow: devices, processes, SLURM and Apptainer images.

In: flags and resources of a step, the environment variables of torchrun and SLURM, and the definitions and locks that
images are built from. Out: the device and the threads to compute with (`devices`), parallel workers (`pool`), the
processes of one training (`launch` starts them, `distributed` connects them), GPU readings (`gpus`), checks and
deadlines of jobs (`slurm`), what jobs took (`accounting`), image files (`images`), and a line for each artifact that a
run failed to make (`failures`). Nothing here decides a result.

Open `distributed` first for training on several GPUs or nodes, and `slurm` first for what a run does on a cluster.
"""
