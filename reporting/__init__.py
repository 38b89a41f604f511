"""Tables, pictures and pages that tell people what a run has done."""
