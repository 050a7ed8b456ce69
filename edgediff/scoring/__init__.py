"""What pruners share: the scores that a plan is made from."""
