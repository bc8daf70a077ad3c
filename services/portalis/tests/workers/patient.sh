#!/bin/sh
# Stands for a worker in the supervisor's tests: runs until it is asked to end.
trap 'exit 0' TERM
while :; do sleep 0.02; done
