# bash's alone, instead of a ~/.profile that every command's `sh -l` would read too. One that a user makes is read.
[ ! -f ~/.profile ] || . ~/.profile
[ ! -f ~/.bashrc ] || . ~/.bashrc
