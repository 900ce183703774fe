# Training code is arbitrary code, so a node reaches its own mailbox and nothing else (docs/adr/0022). There is one role
# for all of them: ${aws:userid} is <unique id of the role>:<instance id> for the credentials that EC2 hands to an
# instance, and nobody on the instance can change it. Inputs come by links to single objects.
locals {
  node_policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid      = "ReadWhatItIsTold"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = "${local.artifacts}/nodes/$${aws:userid}/in/*"
      },
      {
        Sid      = "KeepWhatItSays"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
        Resource = "${local.artifacts}/nodes/$${aws:userid}/out/*"
      },
      {
        Sid       = "ListItsMailbox"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = local.artifacts
        Condition = { StringLike = { "s3:prefix" = "nodes/$${aws:userid}/*" } }
      },
      ], length(var.secret_arns) > 0 ? [{
        Sid      = "SecretsOfTheEnvironment"
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue", "ssm:GetParameter"]
        Resource = var.secret_arns
        }] : [], length(var.secret_arns) > 0 ? [{
        # Only where somebody tagged a key of the account as the environment's; AWS's own keys need no permission.
        Sid      = "KeysOfThoseSecrets"
        Effect   = "Allow"
        Action   = "kms:Decrypt"
        Resource = "arn:${local.partition}:kms:*:${local.account}:key/*"
        Condition = {
          StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
          StringLike   = { "kms:ViaService" = ["secretsmanager.*.amazonaws.com", "ssm.*.amazonaws.com"] }
        }
        }] : [], var.encrypted ? [{
        Sid      = "OnlyThroughS3"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
        Resource = "arn:${local.partition}:kms:*:${local.account}:key/*"
        Condition = {
          StringEquals = { "aws:ResourceTag/${local.environment}" = var.environment }
          StringLike   = { "kms:ViaService" = "s3.*.amazonaws.com" }
        }
    }] : [])
  })
}
