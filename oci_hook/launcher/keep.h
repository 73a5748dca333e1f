/* keep.h - what is kept of a refusal of the launcher's or of vgpu-hook's own. */
#ifndef VGPU_KEEP_H
#define VGPU_KEEP_H

/* No member is NULL. */
struct refusal {
    const char *id;   /* as the engine gave it; one that is no file's name is kept as ".unnamed" */
    const char *part; /* who refuses: "launcher" or "hook" */
    const char *bundle;
    const char *code;
    const char *message;
    const char *remedy;
};

/* <state>/failures/<id>.json, if there is a folder <state>. What cannot be written is lost: it fails nothing. */
void keep_refusal(const char *state, const struct refusal *told);

#endif
