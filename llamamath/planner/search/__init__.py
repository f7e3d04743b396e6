"""The search: from what the user fixed, a device and a budget to a job that fits, its neighbours, and the reasons for the rest."""
