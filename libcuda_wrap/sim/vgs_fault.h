/* vgs_fault.h - faults on demand, for both libraries. */
#ifndef VGS_FAULT_H
#define VGS_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#define VGS_FAULT_LOST (-1)

extern uint32_t vgs_faults_seen; /* of vgs_state->fault_count */
extern bool vgs_any_fault;       /* a rule, or a lost GPU */
void vgs_read_faults(void);      /* environment and ctl */
/* What `function` has to fail with, VGS_FAULT_LOST, or 0; waits first if it has to be slow. */
int vgs_fault(const char *function);
bool vgs_symbol_is_missing(const char *name);

#endif
