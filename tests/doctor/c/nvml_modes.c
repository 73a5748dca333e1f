/* An NVML with one GPU whose modes come from the environment: MODES="mig compute persistence", as numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned mode(int which)
{
    unsigned found[3] = {0, 0, 1};
    const char *text = getenv("MODES");
    if (text)
        sscanf(text, "%u %u %u", &found[0], &found[1], &found[2]);
    return found[which];
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    return 0;
}

int nvmlShutdown(void)
{
    return 0;
}

const char *nvmlErrorString(int result)
{
    return result ? "an error" : "no error";
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = 1;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    static int only;
    *device = &only;
    return index ? 2 : 0;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length)
{
    (void)device;
    strncpy(uuid, "GPU-of-a-test", length);
    return 0;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending)
{
    (void)device;
    *current = *pending = mode(0);
    return 0;
}

int nvmlDeviceGetComputeMode(void *device, unsigned *out)
{
    (void)device;
    *out = mode(1);
    return 0;
}

int nvmlDeviceGetPersistenceMode(void *device, unsigned *out)
{
    (void)device;
    *out = mode(2);
    return 0;
}
