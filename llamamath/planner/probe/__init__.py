"""What this machine has: raw capture, its reading, the Device a job is judged against. Import from the modules; nothing is done here."""
