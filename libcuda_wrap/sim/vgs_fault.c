/* vgs_fault.c - faults on demand: VGPU_SIM_FAULT for one process, or `fault` in ctl for all. docs/simulated-gpu.md has the language:
 *   RULE[,RULE…]   RULE: FUNCTION=CODE | FUNCTION=CODE@NTH | slow=FUNCTION:TIME(us|ms|s) | missing=FUNCTION | lost
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vgs_fault.h"
#include "vgs_region.h"

enum rule_kind { RULE_FAIL, RULE_SLOW, RULE_MISSING, RULE_LOST };
struct rule {
    enum rule_kind kind;
    char function[64];
    int code;
    uint64_t nth; /* 0: every call */
    uint64_t calls;
    uint64_t delay_ns;
};

#define MAX_RULES 32
static struct rule rules[MAX_RULES];
static uint32_t rule_count;
static pthread_mutex_t rules_lock = PTHREAD_MUTEX_INITIALIZER;

uint32_t vgs_faults_seen;
bool vgs_any_fault;

static uint64_t duration_ns(const char *text)
{
    char *unit;
    uint64_t value = strtoull(text, &unit, 10);
    return value * (strcmp(unit, "s") == 0 ? 1000000000u : strcmp(unit, "ms") == 0 ? 1000000u : 1000u);
}

static void add_rule(char *text)
{
    struct rule rule = {.kind = RULE_FAIL};
    char *value = strchr(text, '=');
    if (value)
        *value++ = '\0';
    if (strcmp(text, "lost") == 0) {
        rule.kind = RULE_LOST;
    } else if (!value) {
        return;
    } else if (strcmp(text, "missing") == 0) {
        rule.kind = RULE_MISSING;
        text = value;
    } else if (strcmp(text, "slow") == 0) {
        char *time = strchr(value, ':');
        if (!time)
            return;
        *time++ = '\0';
        rule.kind = RULE_SLOW;
        rule.delay_ns = duration_ns(time);
        text = value;
    } else {
        char *nth;
        rule.code = (int)strtoul(value, &nth, 10);
        rule.nth = *nth == '@' ? strtoull(nth + 1, NULL, 10) : 0;
    }
    if (rule_count == MAX_RULES || strlen(text) >= sizeof rule.function)
        return;
    strcpy(rule.function, text);
    rules[rule_count++] = rule;
}

static void add_rules(const char *text)
{
    char copy[512], *rest = copy;
    if (!text || strlen(text) >= sizeof copy)
        return;
    strcpy(copy, text);
    for (char *part; (part = strsep(&rest, ",")) != NULL;)
        add_rule(part);
}

void vgs_read_faults(void)
{
    char shared[sizeof vgs_state->fault];
    pthread_mutex_lock(&rules_lock);
    vgs_faults_seen = __atomic_load_n(&vgs_state->fault_count, __ATOMIC_ACQUIRE);
    memcpy(shared, vgs_state->fault, sizeof shared);
    shared[sizeof shared - 1] = '\0';
    rule_count = 0;
    add_rules(getenv("VGPU_SIM_FAULT"));
    add_rules(shared);
    vgs_any_fault = rule_count > 0;
    for (uint32_t gpu = 0; gpu < vgs_state->gpu_count; gpu++)
        vgs_any_fault = vgs_any_fault || vgs_state->gpus[gpu].lost;
    pthread_mutex_unlock(&rules_lock);
}

/* Does the rule's name mean `function`? cuMemAlloc means cuMemAlloc_v2 too. */
static bool means(const char *name, const char *function)
{
    size_t length = strlen(name);
    return strncmp(name, function, length) == 0 &&
           (function[length] == '\0' || strncmp(function + length, "_v", 2) == 0);
}

int vgs_fault(const char *function)
{
    int result = 0;
    uint64_t delay_ns = 0;
    pthread_mutex_lock(&rules_lock);
    for (uint32_t i = 0; i < rule_count && result == 0; i++) {
        struct rule *rule = &rules[i];
        if (rule->kind == RULE_LOST)
            result = VGS_FAULT_LOST;
        else if (rule->kind == RULE_SLOW && means(rule->function, function))
            delay_ns += rule->delay_ns;
        else if (rule->kind == RULE_FAIL && means(rule->function, function) &&
                 (++rule->calls == rule->nth || rule->nth == 0))
            result = rule->code;
    }
    pthread_mutex_unlock(&rules_lock);
    if (delay_ns)
        vgs_sleep_until(vgs_now_ns() + delay_ns);
    return result;
}

bool vgs_symbol_is_missing(const char *name)
{
    bool missing = false;
    if (!vgs_any_fault)
        return false;
    pthread_mutex_lock(&rules_lock);
    for (uint32_t i = 0; i < rule_count; i++)
        missing = missing || (rules[i].kind == RULE_MISSING && strcmp(rules[i].function, name) == 0);
    pthread_mutex_unlock(&rules_lock);
    return missing;
}
