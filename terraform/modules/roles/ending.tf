# Looking and ending. EC2's describe calls know no resources and no tags, so they are allowed on all or not at all; they
# tell and change nothing. Ending asks for the tags of a lease: shared parts of the environment carry no ledger's tag.
locals {
  ending_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "LookEverywhere"
        Effect = "Allow"
        Action = [
          "ec2:DescribeAddresses", "ec2:DescribeFleetInstances", "ec2:DescribeFleets", "ec2:DescribeInstances",
          "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeLaunchTemplates", "ec2:DescribeNetworkInterfaces",
          "ec2:DescribeRegions", "ec2:DescribeSecurityGroups", "ec2:DescribeSpotInstanceRequests",
          "ec2:DescribeTags", "ec2:DescribeVolumes", "tag:GetResources",
        ]
        Resource = "*"
      },
      {
        Sid    = "EndWhatALeaseHas"
        Effect = "Allow"
        Action = [
          "ec2:CancelSpotInstanceRequests", "ec2:DeleteFleets", "ec2:DeleteLaunchTemplate", "ec2:DeleteNetworkInterface",
          "ec2:DeleteSecurityGroup", "ec2:DeleteVolume", "ec2:DisassociateAddress", "ec2:ReleaseAddress",
          "ec2:TerminateInstances",
        ]
        Resource = [for kind in [
          "elastic-ip", "fleet", "instance", "launch-template", "network-interface", "security-group",
          "spot-instances-request", "volume",
        ] : "${local.ec2}:${kind}/*"]
        Condition = {
          StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
          Null         = { "aws:ResourceTag/${local.ledger}" = "false" }
        }
      },
    ]
  })
}
