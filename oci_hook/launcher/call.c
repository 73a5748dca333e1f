/* call.c - read the command line as runc and crun read it.
 *
 * Both take options before and after the verb, with one dash or two, `--name value` or `--name=value`; crun also takes
 * unique beginnings of a name, and `-bVALUE`. The verb is the first word that is a verb: an option that a later version
 * adds cannot then hide a `create` behind its value. What neither would accept may be read anyhow: the runtime refuses
 * it.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <stddef.h>
#include <string.h>

static const char *const VERBS[] = {"create", "run",  "checkpoint", "delete", "events", "exec", "features",
                                    "init",   "kill", "list",       "mounts", "pause",  "ps",   "restore",
                                    "resume", "spec", "start",      "state",  "update", "help"};
static const char *const GLOBAL_VALUES[] = {"log",  "log-format", "log-level",     "root",
                                            "criu", "rootless",   "cgroup-manager"};
static const char *const CREATE_VALUES[] = {"bundle",         "b",        "config",       "f",
                                            "console-socket", "pid-file", "pidfd-socket", "preserve-fds"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

struct option {
    const char *name; /* without dashes; not terminated */
    size_t length;
    bool is_long;      /* two dashes: beginnings of names count */
    const char *value; /* after '=' or attached, or NULL */
};

static struct option split(const char *argument)
{
    const bool two_dashes = argument[1] == '-';
    struct option option = {.name = argument + (two_dashes ? 2 : 1), .is_long = two_dashes};
    const char *equals = strchr(option.name, '=');
    option.length = equals == NULL ? strlen(option.name) : (size_t)(equals - option.name);
    option.value = equals == NULL ? NULL : equals + 1;
    return option;
}

/* The name in `table` that `option` is or, if none is, the first that it is the beginning of; NULL: none. */
static const char *find(const struct option *option, const char *const *table, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i]) == option->length && memcmp(option->name, table[i], option->length) == 0)
            return table[i];
    for (size_t i = 0; i < count && option->is_long; i++)
        if (strlen(table[i]) > option->length && memcmp(option->name, table[i], option->length) == 0)
            return table[i];
    return NULL;
}

static bool is_verb(const char *word)
{
    for (size_t i = 0; i < COUNT(VERBS); i++)
        if (strcmp(word, VERBS[i]) == 0)
            return true;
    return false;
}

static void take(struct call *call, const char *name, const char *value)
{
    if (strcmp(name, "log") == 0)
        call->log = value;
    else if (strcmp(name, "log-format") == 0)
        call->log_format = value;
    else if (name[0] == 'b')
        call->bundle = value;
    else if (strcmp(name, "config") == 0 || strcmp(name, "f") == 0)
        call->config = value;
}

struct call parse_call(int count, char **arguments)
{
    struct call call = {.bundle = ".", .config = "config.json", .id = "", .log = "", .log_format = "text"};
    bool after_verb = false, only_words = false;
    for (int i = 1; i < count; i++) {
        const char *argument = arguments[i];
        if (!only_words && strcmp(argument, "--") == 0) {
            only_words = true;
        } else if (only_words || argument[0] != '-' || argument[1] == '\0') {
            if (!after_verb && is_verb(argument)) {
                after_verb = true;
                call.creates = strcmp(argument, "create") == 0 || strcmp(argument, "run") == 0;
            } else if (after_verb && call.id[0] == '\0') {
                call.id = argument;
            }
        } else {
            struct option option = split(argument);
            const bool attached = after_verb && (argument[1] == 'b' || argument[1] == 'f');
            const char *name = after_verb ? find(&option, CREATE_VALUES, COUNT(CREATE_VALUES))
                                          : find(&option, GLOBAL_VALUES, COUNT(GLOBAL_VALUES));
            if (name == NULL && attached) { /* crun's -b/path */
                name = argument[1] == 'b' ? "b" : "f";
                option.value = argument + 2;
            }
            if (name != NULL && option.value == NULL && i + 1 < count)
                option.value = arguments[++i];
            if (name != NULL && option.value != NULL)
                take(&call, name, option.value);
        }
    }
    return call;
}
