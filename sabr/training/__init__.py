"""Objectives, schedules, regularisers and the one training loop."""
