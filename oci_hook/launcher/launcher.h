/* launcher.h - the launcher's two values, and what its files give each other. */
#ifndef VGPU_LAUNCHER_H
#define VGPU_LAUNCHER_H

#include <stdbool.h>

/* The engine's call as runc or crun would read it. No member is NULL. */
struct call {
    bool creates; /* the verb is create or run */
    const char *bundle;
    const char *config; /* crun's --config; absolute, or below the bundle */
    const char *id;     /* "" if none is given */
    const char *log;    /* "" if none is given */
    const char *log_format;
};

/* <prefix>/etc/launcher.conf; absolute paths. */
struct config {
    char *runtime;
    char *python;
    char *shim;
    char *policy;
    char *state; /* NULL in a file of an older version */
};

struct call parse_call(int count, char **arguments);

/* Returns if the runtime may start; otherwise somebody has said why not, and this process ends. */
void ask_shim(const struct call *call, const struct config *config);

/* Where `refuse` keeps what it says; until it is called, in the folder that an installation has by itself. */
void keep_refusals_in(const char *state);

/* One line on standard error, the same in the runtime's log, and exit 5. */
_Noreturn void refuse(const struct call *call, const char *code, const char *message, const char *remedy);

/* Refuses: `program` could not be started, for this errno. */
_Noreturn void cannot_start(const struct call *call, const char *program, int error, const char *remedy);

#endif
