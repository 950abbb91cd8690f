# root's own profile. Debian's also runs `mesg`: see /etc/profile for why this one runs nothing.

if [ "${BASH-}" ] && [ "$BASH" != /bin/sh ] && [ -f ~/.bashrc ]; then
    . ~/.bashrc
fi
