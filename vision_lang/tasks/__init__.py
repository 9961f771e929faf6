"""What is learned: each task is a loss, predictions and a batch spec; pure, without files."""

from vision_lang.tasks import diffusion_config

# config.task -> (config, facts about the data) -> the task
TASKS = {"diffusion": diffusion_config.from_config}
