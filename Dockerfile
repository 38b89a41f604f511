# A task image with everything that training needs, for clusters whose containers have no network
# and to save the time of startup-hook.sh in every container:
#
#   docker build --build-arg BASE=the/clusters/own:image --tag registry/active_learning:1 .
#
# Name it in the YAML:
#
#   environment:
#     image: registry/active_learning:1
#
# BASE is the image that the cluster's trials use now. Its torch, torchvision and numpy stay.
ARG BASE=determinedai/pytorch-ngc-dev:0736b6d
FROM ${BASE}
WORKDIR /tmp/active_learning
COPY requirements.txt startup-hook.sh ./
RUN ["bash", "-ec", "source ./startup-hook.sh && rm -r /tmp/active_learning"]
WORKDIR /
