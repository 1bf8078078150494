# Written by sovctl: what an operator makes on a node is not for everybody's eyes.
umask 027
