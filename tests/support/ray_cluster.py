"""A Ray cluster of two machines on this one, in a process of its own; it ends with its standard input.

The first line of its output is the cluster's address. A line "kill" of its input ends the second machine at once, with
all of its workers.
"""

import sys

CPUS = 1
"""CPUs of each machine."""

QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2_000,
    "health_check_failure_threshold": 3,
}
"""Settings by which a cluster finds out soon that a machine is gone."""


def main(cpus):
    from ray.cluster_utils import Cluster

    memory = 100 * 2**20
    head = {"num_cpus": cpus, "object_store_memory": memory, "_system_config": QUICK, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=cpus, object_store_memory=memory)
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
