/* layout.c - an ELF note that says which layouts of quota and usage file this build reads: `vgpu doctor` compares. */
#include "vgw_quota.h"
#include "vgw_usage.h"

#define NOTE_LAYOUTS 1u /* of the notes named "vgpu" */

static const struct {
    uint32_t name_bytes, bytes, kind;
    char name[8]; /* "vgpu", padded to four bytes */
    uint32_t quota_version, usage_version;
} layouts __attribute__((section(".note.vgpu"), used, aligned(4))) = {
    5, 8, NOTE_LAYOUTS, "vgpu", VGW_QUOTA_VERSION, VGW_USAGE_VERSION};

_Static_assert(sizeof layouts == 28, "a note has no gaps");
